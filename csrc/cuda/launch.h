// From tensors to a kernel's arguments. The Python side has checked everything with better messages;
// here only what keeps memory safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include <cuda_runtime.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include "experts.cuh"

namespace fastgrow::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline int64_t count_rows(const Tensor& t) {
  int64_t rows = 1;
  for (int64_t d = 0; d < t.dim() - 1; ++d) rows *= t.size(d);
  return rows;
}

// The one stride from row to row.
inline int64_t row_stride(const Tensor& t) {
  int64_t stride = 0;
  int64_t rows = 1;
  for (int64_t d = t.dim() - 2; d >= 0; --d) {
    if (t.size(d) == 1) continue;
    if (rows == 1) stride = t.stride(d);
    STD_TORCH_CHECK(t.stride(d) == stride * rows, "the rows of a tensor have no common stride");
    rows *= t.size(d);
  }
  return stride;
}

template <class In>
Experts<In> experts_of(const std::vector<Tensor>& logits, const Tensor& scale) {
  Experts<In> experts{};
  const Tensor& first = logits[0];
  experts.n_experts = static_cast<int>(logits.size());
  experts.n_columns = first.size(first.dim() - 1);
  experts.n_rows = count_rows(first);
  experts.scale = scale.const_data_ptr<float>();
  experts.has_row_factors = scale.dim() == 2;
  for (int k = 0; k < experts.n_experts; ++k) {
    experts.logits[k] = static_cast<const In*>(logits[k].const_data_ptr());
    experts.strides[k] = row_stride(logits[k]);
  }
  return experts;
}

inline void check_experts(const char* operation, const std::vector<Tensor>& logits,
                          const Tensor& scale) {
  const int64_t n_experts = static_cast<int64_t>(logits.size());
  STD_TORCH_CHECK(n_experts >= 1 && n_experts <= kMaxExperts, operation,
                  ": expected 1 to 64 experts, got ", n_experts);
  const Tensor& first = logits[0];
  STD_TORCH_CHECK(first.dim() >= 1, operation, ": logits must have a last dimension");
  for (int64_t k = 0; k < n_experts; ++k) {
    const Tensor& t = logits[k];
    STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == first.get_device_index() &&
                        t.scalar_type() == first.scalar_type() && t.dim() == first.dim() &&
                        (t.size(t.dim() - 1) <= 1 || t.stride(t.dim() - 1) == 1),
                    operation, ": expert ", k, " differs in device, dtype, rank or layout");
    for (int64_t d = 0; d < t.dim(); ++d) {
      STD_TORCH_CHECK(t.size(d) == first.size(d), operation, ": expert ", k,
                      " differs from expert 0 in dimension ", d);
    }
  }
  const bool one_row = scale.dim() == 1 && scale.size(0) == n_experts;
  const bool row_each =
      scale.dim() == 2 && scale.size(0) == count_rows(first) && scale.size(1) == n_experts;
  STD_TORCH_CHECK(scale.is_cuda() && scale.get_device_index() == first.get_device_index() &&
                      scale.is_contiguous() && scale.scalar_type() == ScalarType::Float &&
                      (one_row || row_each),
                  operation, ": scale must be float32, one for each expert, or for each row and "
                  "expert");
}

inline void check_rows(const char* operation, const char* name, const Tensor& t,
                       const Tensor& logits, int64_t n_rows, ScalarType dtype) {
  STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == logits.get_device_index() &&
                      t.is_contiguous() && t.numel() == n_rows && t.scalar_type() == dtype,
                  operation, ": ", name, " must be contiguous, of one value for each row");
}

// Whether every row begins at a multiple of 16 bytes.
template <class T>
bool is_aligned(const T* base, int64_t stride, int64_t n_rows) {
  return reinterpret_cast<uintptr_t>(base) % 16 == 0 &&
         (n_rows <= 1 || stride * static_cast<int64_t>(sizeof(T)) % 16 == 0);
}

template <class In>
bool is_aligned(const Experts<In>& experts) {
  for (int k = 0; k < experts.n_experts; ++k) {
    if (!is_aligned(experts.logits[k], experts.strides[k], experts.n_rows)) return false;
  }
  return true;
}

// Rows that are worked on at a time, where a row is `parts` blocks: enough blocks to fill any device
// several times over, and no more, so that a block is not over before its loads have arrived.
inline unsigned rows_at_a_time(int64_t n_rows, int64_t parts) {
  constexpr int64_t blocks = 8192;
  return static_cast<unsigned>(std::min<int64_t>({n_rows, (blocks + parts - 1) / parts, 65535}));
}

// Calls f with a zero of the type that a kernel reads.
template <class F>
void with_type_of(const char* operation, const Tensor& logits, const F& f) {
  switch (logits.scalar_type()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::BFloat16:
      return f(__nv_bfloat16{});
    case ScalarType::Half:
      return f(__half{});
    default:
      STD_TORCH_CHECK(false, operation, ": the device takes float32, bfloat16 or float16");
  }
}

}  // namespace fastgrow::cuda
