// Which vector instructions this process uses. Files are compiled for the baseline; functions that
// need more carry a target attribute and are reached only through `instruction_set()`.
#pragma once

namespace fastgrow {

enum class InstructionSet : int { portable = 0, avx2 = 1, avx512 = 2 };

// The best set this CPU has, or a lower one named by FASTGROW_CPU_CAPABILITY (portable, avx2,
// avx512). Read once a process.
InstructionSet instruction_set();

}  // namespace fastgrow
