// Reductions over columns: within a thread, then over the threads of a team, then over the parts of a
// row, always in the same order. There are no atomics, so equal inputs give equal bits.
#pragma once

#include <cmath>
#include <cstdint>

#include "experts.cuh"

namespace fastgrow::cuda {

constexpr float kLog2E = 1.4426950408889634f;

__device__ inline float exponential(float x) { return exp2f(x * kLog2E); }

// The sum of exponentials of some logits, relative to the largest that is not NaN.
struct alignas(8) Mass {
  float top;
  float sum;

  static __device__ Mass none() { return {-INFINITY, 0.0f}; }

  // If every logit is -inf, x - top would be NaN and not -inf.
  __device__ float shift() const { return top == -INFINITY ? 0.0f : top; }

  template <int size>
  __device__ void add(const float (&x)[size], int64_t) {
    const float before = shift();
    for (int i = 0; i < size; ++i) top = fmaxf(top, x[i]);
    const float after = shift();
    if (sum != 0) sum *= exponential(before - after);
    for (int i = 0; i < size; ++i) sum += exponential(x[i] - after);
  }

  __device__ void add(const Mass& other) {
    const float before = shift();
    top = fmaxf(top, other.top);
    const float after = shift();
    // A sum of zero stays zero for any shift.
    if (sum != 0) sum *= exponential(before - after);
    if (other.sum != 0) sum += other.sum * exponential(other.shift() - after);
  }

  __device__ Mass of_lane(int offset) const {
    return {__shfl_xor_sync(kAllLanes, top, offset), __shfl_xor_sync(kAllLanes, sum, offset)};
  }

  // The sum relative to another shift.
  __device__ double relative_to(float other) const {
    return sum == 0 ? 0 : static_cast<double>(sum) * exp(static_cast<double>(shift() - other));
  }

  __device__ float log() const { return shift() + logf(sum); }
};

// The largest logit and its column. NaN comes before all numbers, and of equal logits the lower column
// comes first, as in `torch.topk`.
struct alignas(8) Candidate {
  float value;
  int column;

  static __device__ Candidate none() { return {-INFINITY, INT32_MAX}; }

  __device__ bool is_before(const Candidate& other) const {
    const bool is_nan = value != value;
    const bool other_is_nan = other.value != other.value;
    if (is_nan != other_is_nan) return is_nan;
    if (!is_nan && value != other.value) return value > other.value;
    return column < other.column;
  }

  __device__ void add(const Candidate& other) {
    if (other.is_before(*this)) *this = other;
  }

  template <int size>
  __device__ void add(const float (&x)[size], int64_t first) {
    for (int i = 0; i < size; ++i) add(Candidate{x[i], static_cast<int>(first) + i});
  }

  __device__ Candidate of_lane(int offset) const {
    return {__shfl_xor_sync(kAllLanes, value, offset), __shfl_xor_sync(kAllLanes, column, offset)};
  }
};

struct Sum {
  double value;

  __device__ void add(const Sum& other) { value += other.value; }
  __device__ Sum of_lane(int offset) const { return {__shfl_xor_sync(kAllLanes, value, offset)}; }
};

template <class Part>
__device__ Part of_warp(Part part) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) part.add(part.of_lane(offset));
  return part;
}

// Reduces over all threads of a team, which all have to call it.
template <class Part>
__device__ Part of_team(Part part, const Team& team) {
  part = of_warp(part);
  if (team.size == kWarp) return part;
  auto& of_each_warp = shared<Part[kMaxThreads / kWarp]>();
  team.sync();  // The values of the previous call may still be read.
  if (team.rank % kWarp == 0) of_each_warp[team.rank / kWarp] = part;
  team.sync();
  part = of_each_warp[0];
  for (int warp = 1; warp < team.size / kWarp; ++warp) part.add(of_each_warp[warp]);
  return part;
}

// Reduces a row's parts, by one warp; the result is the same in all lanes.
template <class Part>
__device__ Part of_parts(const Part* parts, int64_t n_parts, int lane) {
  Part part = Part::none();
  for (int64_t i = lane; i < n_parts; i += kWarp) part.add(parts[i]);
  part = of_warp(part);
  return part;
}

}  // namespace fastgrow::cuda
