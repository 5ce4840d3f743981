// Converts tensors to a kernel's arguments. The Python code has checked all arguments with better
// messages; these checks protect memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "device.h"
#include "experts.cuh"

namespace fastgrow::cuda {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline int64_t count_rows(const Tensor& t) {
  int64_t rows = 1;
  for (int64_t d = 0; d < t.dim() - 1; ++d) rows *= t.size(d);
  return rows;
}

inline int64_t count_columns(const Tensor& t) { return t.size(t.dim() - 1); }

inline Rows rows_of(const char* operation, const Tensor& t) {
  // Dimensions without a gap between them are merged.
  struct Dimension {
    int64_t size, stride;
  };
  std::vector<Dimension> dimensions;  // the innermost first
  for (int64_t d = t.dim() - 2; d >= 0; --d) {
    if (t.size(d) == 1) continue;
    if (!dimensions.empty() && t.stride(d) == dimensions.back().size * dimensions.back().stride) {
      dimensions.back().size *= t.size(d);
    } else {
      dimensions.push_back({t.size(d), t.stride(d)});
    }
  }
  STD_TORCH_CHECK(dimensions.size() <= 2, operation,
                  ": the rows of a tensor are spaced in more than two ways; call contiguous() "
                  "on it");
  if (dimensions.empty()) return {1, 0, 0};
  if (dimensions.size() == 1) return {1, 0, dimensions[0].stride};
  return {dimensions[0].size, dimensions[0].stride, dimensions[1].stride};
}

inline void check_experts(const char* operation, const std::vector<Tensor>& logits,
                          const Tensor& scale) {
  const int64_t n_experts = static_cast<int64_t>(logits.size());
  STD_TORCH_CHECK(n_experts >= 1 && n_experts <= kMaxExperts, operation,
                  ": expected 1 to 64 experts, got ", n_experts);
  const Tensor& first = logits[0];
  STD_TORCH_CHECK(first.dim() >= 1, operation, ": logits must have at least one dimension");
  for (int64_t k = 0; k < n_experts; ++k) {
    const Tensor& t = logits[k];
    STD_TORCH_CHECK(is_on_device(t) && t.get_device_index() == first.get_device_index() &&
                        t.scalar_type() == first.scalar_type() && t.dim() == first.dim() &&
                        (count_columns(t) <= 1 || t.stride(t.dim() - 1) == 1),
                    operation, ": expert ", k,
                    " differs from expert 0 in device, dtype, rank or layout");
    for (int64_t d = 0; d < t.dim(); ++d) {
      STD_TORCH_CHECK(t.size(d) == first.size(d), operation, ": expert ", k,
                      " differs from expert 0 in dimension ", d);
    }
  }
  const bool one_row = scale.dim() == 1 && scale.size(0) == n_experts;
  const bool row_each =
      scale.dim() == 2 && scale.size(0) == count_rows(first) && scale.size(1) == n_experts;
  STD_TORCH_CHECK(is_on_device(scale) && scale.get_device_index() == first.get_device_index() &&
                      scale.is_contiguous() && scale.scalar_type() == ScalarType::Float &&
                      (one_row || row_each),
                  operation, ": scale must be contiguous float32, with one value for each expert, or "
                  "for each row and expert");
}

// Checks for a contiguous tensor of `count` numbers on the logits' device.
inline void check_numbers(const char* operation, const char* name, const Tensor& t,
                          const Tensor& logits, int64_t count, ScalarType dtype) {
  STD_TORCH_CHECK(is_on_device(t) && t.get_device_index() == logits.get_device_index() &&
                      t.is_contiguous() && t.numel() == count && t.scalar_type() == dtype,
                  operation, ": ", name, " must be contiguous, on the logits' device, with ", count,
                  " elements of the expected dtype");
}

template <class In>
Experts<In> experts_of(const char* operation, const std::vector<Tensor>& logits,
                       const Tensor& scale) {
  Experts<In> experts{};
  const Tensor& first = logits[0];
  experts.n_experts = static_cast<int>(logits.size());
  experts.n_columns = count_columns(first);
  experts.n_rows = count_rows(first);
  experts.scale = scale.const_data_ptr<float>();
  experts.has_row_factors = scale.dim() == 2;
  for (int k = 0; k < experts.n_experts; ++k) {
    experts.logits[k] = static_cast<const In*>(logits[k].const_data_ptr());
    experts.rows[k] = rows_of(operation, logits[k]);
  }
  return experts;
}

// A launch as planned by fastgrow/ops/core/launch_plan.py: threads per block, rows per block, parts per
// row, columns per part, rows at a time.
struct Plan {
  Plan(const char* operation, const std::vector<int64_t>& numbers, const Tensor& logits)
      : n_rows(count_rows(logits)) {
    STD_TORCH_CHECK(numbers.size() == 5, operation, ": a launch plan must have five numbers, got ",
                    numbers.size());
    const int64_t threads = numbers[0];
    const int64_t rows = numbers[1];
    const int64_t at_a_time = numbers[4];
    const int64_t pack = kPackBytes / static_cast<int64_t>(logits.element_size());
    cut = {numbers[3], numbers[2], rows > 1};
    const int64_t n_columns = count_columns(logits);
    STD_TORCH_CHECK(
        threads >= kWarp && threads <= kMaxThreads && threads % kWarp == 0 &&
            (rows == 1 || (rows * kWarp == threads && cut.n_parts == 1)) && cut.n_parts >= 1 &&
            cut.n_parts <= 0x7fffffff && cut.length >= 1 && cut.length % pack == 0 &&
            (n_columns + cut.length - 1) / cut.length == cut.n_parts && at_a_time >= 1 &&
            at_a_time <= 65535,
        operation, ": invalid launch plan for ", n_columns, " columns");
    block = dim3(static_cast<unsigned>(threads));
    grid = dim3(static_cast<unsigned>(cut.n_parts), static_cast<unsigned>(at_a_time));
    rows_grid = dim3(static_cast<unsigned>(std::min(n_rows, at_a_time * rows)));
  }

  // Memory for `each` objects of type Part for every part of every row.
  template <class Part>
  Part* parts(const char* operation, const Tensor& memory, const Tensor& logits,
              int64_t each = 1) const {
    const int64_t bytes = n_rows * cut.n_parts * each * static_cast<int64_t>(sizeof(Part));
    check_numbers(operation, "parts", memory, logits, bytes, ScalarType::Byte);
    STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(memory.const_data_ptr()) % alignof(Part) == 0,
                    operation, ": parts must be aligned to their type");
    return static_cast<Part*>(memory.mutable_data_ptr());
  }

  int64_t n_rows;
  Cut cut{};
  dim3 grid{1};
  dim3 block{1};
  dim3 rows_grid{1};  // for kernels in which a block processes whole rows
};

// A grid of blocks of kMaxThreads with one warp per row.
inline dim3 warp_each(int64_t n_rows) {
  constexpr int64_t rows = kMaxThreads / kWarp;
  return dim3(static_cast<unsigned>(std::min<int64_t>((n_rows + rows - 1) / rows, 0x7fffffff)));
}

// The row of this warp in such a grid.
__device__ inline int64_t row_of_warp() {
  return int64_t{blockIdx.x} * (kMaxThreads / kWarp) + threadIdx.x / kWarp;
}

// Calls f with a zero of the type that a kernel reads.
template <class F>
void with_type_of(const char* operation, const Tensor& logits, const F& f) {
  switch (logits.scalar_type()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    case ScalarType::Half:
      return f(Half{});
    default:
      STD_TORCH_CHECK(false, operation, ": logits on a GPU must be float32, bfloat16 or float16");
  }
}

}  // namespace fastgrow::cuda
