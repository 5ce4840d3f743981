#pragma once

#include <cstdint>

namespace fastgrow {

// The bits of sqrt(1/2) as a float. Subtracted from a number's bits, they leave in the exponent's bits
// the power of two that scales the number to [sqrt(1/2), sqrt(2)).
constexpr int32_t kBitsOfRootHalf = 0x3f3504f3;

// The length of buffers is a multiple of this: whole vectors of every instruction set.
constexpr int64_t kVectorMultiple = 64;

}  // namespace fastgrow
