// Compiles the file named by FASTGROW_KERNELS once per instruction set, each time in a separate
// namespace and after its vector header, because a template cannot have a target attribute that
// depends on a parameter. FASTGROW_CALL calls a function of the file for the instruction set that
// this process uses.

#include "instruction_set.h"
#include "vector_portable.h"

namespace fastgrow::portable {
#include FASTGROW_KERNELS
}
#if defined(__x86_64__)
#include "vector_avx2.h"
namespace fastgrow::avx2 {
#include FASTGROW_KERNELS
}
#include "vector_avx512.h"
namespace fastgrow::avx512 {
#include FASTGROW_KERNELS
}
#define FASTGROW_CALL(...)                                           \
  (instruction_set() == InstructionSet::avx512 ? avx512::__VA_ARGS__ \
   : instruction_set() == InstructionSet::avx2 ? avx2::__VA_ARGS__   \
                                               : portable::__VA_ARGS__)
#else
#define FASTGROW_CALL(...) portable::__VA_ARGS__
#endif
