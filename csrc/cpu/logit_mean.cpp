// logit_mean_out: out[n, v] = sum over k of scale[k] * logits[k][n, v], in one pass over memory.

#include <algorithm>
#include <cstdint>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "experts.h"
#include "fresh_memory.h"

#define FASTGROW_KERNELS "mean_span.inl"
#include "each_instruction_set.h"

namespace fastgrow {
namespace {

constexpr int64_t kBlock = 16384;  // columns of each expert that a task reads, at least

// An output of at least this size is written around the caches, which it would fill. A fresh output is
// not: the system has just cleared its pages, so they are in the caches.
constexpr int64_t kLargeBytes = 4 << 20;
constexpr int64_t kFreshBlocks = 4;  // blocks of a fresh output whose pages are requested at once

template <class In, class Out>
void logit_mean_typed(
    const std::vector<Tensor>& logits, const Tensor& scale, const Tensor& out, bool fresh) {
  const Experts<In> experts(logits, scale);
  const RowOffsets out_offset(out);
  Out* out_base = out.mutable_data_ptr<Out>();

  // If there are no gaps and all rows have the same weights, the whole tensor is one long row.
  bool dense = out.is_contiguous() && scale.dim() == 1;
  for (const Tensor& t : logits) dense = dense && t.is_contiguous();
  const int64_t n_columns = dense ? out.numel() : experts.n_columns;
  const int64_t n_rows = dense ? 1 : experts.n_rows;

  const int64_t blocks_per_row = (n_columns + kBlock - 1) / kBlock;
  const bool large = out.numel() * static_cast<int64_t>(sizeof(Out)) >= kLargeBytes;
  torch::stable::parallel_for(
      0, n_rows * blocks_per_row, 1, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end;) {
          const int64_t index = block / blocks_per_row;
          const int64_t first = block % blocks_per_row;
          int64_t last = std::min(first + end - block, blocks_per_row);
          if (large && fresh) last = std::min(last, first + kFreshBlocks);
          const int64_t column = first * kBlock;
          Row<In> row = experts.row(index);
          for (int64_t k = 0; k < row.n_experts; ++k) row.logits[k] += column;
          Out* to = out_base + out_offset(index) + column;
          const int64_t n = std::min(last * kBlock, n_columns) - column;
          const auto* from = row.logits.data();
          const auto* weights = row.weights.data();
          if (!large) {
            FASTGROW_CALL(mean_span<false, false>(from, weights, row.n_experts, to, n));
          } else if (fresh) {
            give_pages(to, n * sizeof(Out));
            FASTGROW_CALL(mean_span<true, false>(from, weights, row.n_experts, to, n));
          } else {
            FASTGROW_CALL(mean_span<true, true>(from, weights, row.n_experts, to, n));
          }
          block += last - first;
        }
      });
}

template <class In>
void logit_mean_from(
    const std::vector<Tensor>& logits, const Tensor& scale, const Tensor& out, bool fresh) {
  switch (out.scalar_type()) {
    case ScalarType::Float:
      return logit_mean_typed<In, float>(logits, scale, out, fresh);
    case ScalarType::BFloat16:
      return logit_mean_typed<In, BFloat16>(logits, scale, out, fresh);
    case ScalarType::Half:
      return logit_mean_typed<In, Half>(logits, scale, out, fresh);
    default:
      STD_TORCH_CHECK(false, "logit_mean: out must be float32, bfloat16 or float16");
  }
}

struct Bytes {
  const char* begin;
  const char* end;
};

Bytes bytes_of(const Tensor& t) {
  int64_t last = 0;
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  const char* begin = static_cast<const char*>(t.const_data_ptr());
  return {begin, begin + (last + 1) * static_cast<int64_t>(t.element_size())};
}

// An expert may be overwritten if each element is read just before it is written.
bool may_write_over(const Tensor& out, const Tensor& t) {
  const Bytes to = bytes_of(out);
  const Bytes from = bytes_of(t);
  if (to.end <= from.begin || from.end <= to.begin) return true;
  bool same = to.begin == from.begin && out.scalar_type() == t.scalar_type();
  for (int64_t d = 0; d < out.dim(); ++d) {
    same = same && (out.size(d) == 1 || out.stride(d) == t.stride(d));
  }
  return same;
}

void check(const std::vector<Tensor>& logits, const Tensor& scale, const Tensor& out) {
  check_experts("logit_mean", logits, scale);
  STD_TORCH_CHECK(out.is_cpu() && out.dim() == logits[0].dim() && last_dimension_is_contiguous(out),
                  "logit_mean: out must be a CPU tensor with a contiguous last dimension");
  for (int64_t d = 0; d < out.dim(); ++d) {
    STD_TORCH_CHECK(out.size(d) == logits[0].size(d), "logit_mean: out differs in dimension ", d);
    STD_TORCH_CHECK(out.size(d) <= 1 || out.stride(d) != 0,
                    "logit_mean: out must not be expanded: each element needs its own memory");
  }
  for (size_t k = 0; k < logits.size(); ++k) {
    STD_TORCH_CHECK(out.numel() == 0 || may_write_over(out, logits[k]),
                    "logit_mean: out overlaps expert ", k,
                    " in memory; it must be that expert itself or not overlap it");
  }
}

void logit_mean_out(std::vector<Tensor> logits, Tensor scale, Tensor out, bool fresh) {
  check(logits, scale, out);
  if (out.numel() == 0) return;
  switch (logits[0].scalar_type()) {
    case ScalarType::Float:
      return logit_mean_from<float>(logits, scale, out, fresh);
    case ScalarType::BFloat16:
      return logit_mean_from<BFloat16>(logits, scale, out, fresh);
    case ScalarType::Half:
      return logit_mean_from<Half>(logits, scale, out, fresh);
    case ScalarType::Double:
      STD_TORCH_CHECK(out.scalar_type() == ScalarType::Double,
                      "logit_mean: out must be float64 for float64 logits");
      return logit_mean_typed<double, double>(logits, scale, out, fresh);
    default:
      STD_TORCH_CHECK(false, "logit_mean: logits must be float32, bfloat16, float16 or float64");
  }
}

}  // namespace
}  // namespace fastgrow

STABLE_TORCH_LIBRARY_FRAGMENT(fastgrow_native, m) {
  m.def("logit_mean_out(Tensor[] logits, Tensor scale, Tensor(a!) out, bool fresh) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgrow_native, CPU, m) {
  m.impl("logit_mean_out", TORCH_BOX(&fastgrow::logit_mean_out));
}
