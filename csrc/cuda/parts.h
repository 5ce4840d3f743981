// The first kernel of most operations, compiled once.
#pragma once

#include <vector>

#include "launch.h"
#include "reductions.cuh"

namespace fastgrow::cuda {

// Writes a Part (Mass or Candidate) of each part of each row of the mean to `parts`, [N, parts]; or,
// with `each`, of each expert separately, [N, K, parts].
template <class Part>
void leave_parts(const char* operation, const OnDeviceOf& device, const std::vector<Tensor>& logits,
                 const Tensor& scale, const Plan& plan, Part* parts, bool each = false);

}  // namespace fastgrow::cuda
