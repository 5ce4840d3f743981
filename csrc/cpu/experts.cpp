#include "experts.h"

#include <torch/csrc/stable/ops.h>

namespace fastgrow {

RowOffsets::RowOffsets(const Tensor& t) {
  for (int64_t d = t.dim() - 2; d >= 0; --d) {
    const int64_t size = t.size(d);
    const int64_t stride = t.stride(d);
    if (size == 1) continue;
    if (!dimensions_.empty()) {
      Dimension& inner = dimensions_.back();
      if (stride == inner.size * inner.stride) {
        inner.size *= size;
        continue;
      }
    }
    dimensions_.push_back({size, stride});
  }
}

bool last_dimension_is_contiguous(const Tensor& t) {
  return t.size(t.dim() - 1) <= 1 || t.stride(t.dim() - 1) == 1;
}

int64_t count_rows(const Tensor& logits) {
  int64_t rows = 1;
  for (int64_t d = 0; d < logits.dim() - 1; ++d) rows *= logits.size(d);
  return rows;
}

void check_experts(const char* operation, const std::vector<Tensor>& logits, const Tensor& scale) {
  const int64_t n_experts = static_cast<int64_t>(logits.size());
  STD_TORCH_CHECK(n_experts >= 1 && n_experts <= kMaxExperts, operation,
                  ": expected 1 to 64 experts, got ", n_experts);
  const Tensor& first = logits[0];
  STD_TORCH_CHECK(first.dim() >= 1, operation, ": logits must have at least one dimension");
  for (int64_t k = 0; k < n_experts; ++k) {
    const Tensor& t = logits[k];
    STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == first.scalar_type() &&
                        t.dim() == first.dim() && last_dimension_is_contiguous(t),
                    operation, ": expert ", k,
                    " differs from expert 0 in device, dtype, rank or layout");
    for (int64_t d = 0; d < t.dim(); ++d) {
      STD_TORCH_CHECK(t.size(d) == first.size(d), operation, ": expert ", k,
                      " differs from expert 0 in dimension ", d);
    }
  }
  const bool one_row = scale.dim() == 1 && scale.size(0) == n_experts;
  const bool row_each = scale.dim() == 2 && scale.size(0) == count_rows(first) &&
                        scale.size(1) == n_experts;
  STD_TORCH_CHECK(scale.is_cpu() && scale.is_contiguous() && (one_row || row_each) &&
                      scale.scalar_type() == accumulator_type(first),
                  operation, ": scale must be contiguous and of the accumulator's dtype, with one "
                  "value for each expert, or for each row and expert");
}

void check_rows(const char* operation, const char* name, const Tensor& t, int64_t n_rows,
                ScalarType dtype) {
  STD_TORCH_CHECK(t.is_cpu() && t.is_contiguous() && t.numel() == n_rows &&
                      t.scalar_type() == dtype,
                  operation, ": ", name, " must be contiguous, with one value for each row");
}

}  // namespace fastgrow
