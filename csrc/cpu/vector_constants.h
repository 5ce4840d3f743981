#pragma once

#include <cstdint>

namespace fastgrow {

// Of sqrt(1/2) as a float: subtracted from a number's bits, it leaves in the exponent's place the
// power of two that brings the number nearest to one.
constexpr int32_t kBitsOfRootHalf = 0x3f3504f3;

// Buffers are this many elements long, or a multiple: whole vectors of every instruction set.
constexpr int64_t kVectorMultiple = 64;

}  // namespace fastgrow
