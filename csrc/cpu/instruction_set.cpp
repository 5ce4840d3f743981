#include "instruction_set.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include <torch/csrc/stable/library.h>

namespace fastgrow {
namespace {

InstructionSet supported() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return InstructionSet::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return InstructionSet::avx2;
  }
#endif
  return InstructionSet::portable;
}

InstructionSet allowed() {
  const char* name = std::getenv("FASTGROW_CPU_CAPABILITY");
  if (name != nullptr && std::strcmp(name, "portable") == 0) return InstructionSet::portable;
  if (name != nullptr && std::strcmp(name, "avx2") == 0) return InstructionSet::avx2;
  return InstructionSet::avx512;
}

int64_t instruction_set_index() { return static_cast<int64_t>(instruction_set()); }

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet chosen = std::min(supported(), allowed());
  return chosen;
}

}  // namespace fastgrow

STABLE_TORCH_LIBRARY_FRAGMENT(fastgrow_native, m) { m.def("instruction_set() -> int"); }

STABLE_TORCH_LIBRARY_IMPL(fastgrow_native, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&fastgrow::instruction_set_index));
}
