// The vector instructions that this process uses. Files are compiled for the baseline; functions that
// need more have a target attribute and are called only after checking `instruction_set()`.
#pragma once

namespace fastgrow {

enum class InstructionSet : int { portable = 0, avx2 = 1, avx512 = 2 };

// The best instruction set of this CPU, or a lower one named by FASTGROW_CPU_CAPABILITY (portable,
// avx2, avx512). Read once per process.
InstructionSet instruction_set();

}  // namespace fastgrow
