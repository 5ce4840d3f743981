// logit_mean_out: out[n, v] = sum over k of weights[k] * logits[k][n, v], in one pass over memory.
//
// Each expert is its own storage with its own strides; only the last dimension has to be
// contiguous. Sums are fp32 (fp64 for fp64), in the order of the experts.

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "instruction_set.h"
#include "vector_portable.h"

namespace fastgrow::portable {
#include "mean_span.inl"
}
#if defined(__x86_64__)
#include "vector_avx2.h"
namespace fastgrow::avx2 {
#include "mean_span.inl"
}
#include "vector_avx512.h"
namespace fastgrow::avx512 {
#include "mean_span.inl"
}
#endif

namespace fastgrow {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMaxExperts = 64;
constexpr int64_t kBlock = 16384;  // columns that one task reads of each expert, at least

// An output that would push everything else out of the caches is written around them.
constexpr int64_t kStreamBytes = 4 << 20;

template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Offset of a row, counted over all dimensions but the last.
int64_t row_offset(const Tensor& t, int64_t row) {
  const auto sizes = t.sizes();
  const auto strides = t.strides();
  int64_t offset = 0;
  for (int64_t d = t.dim() - 2; d >= 0; --d) {
    offset += row % sizes[d] * strides[d];
    row /= sizes[d];
  }
  return offset;
}

template <class In, class Out, class Acc>
void mean_span(const In* const* experts, const Acc* weights, int64_t k, Out* out, int64_t n,
               bool stream) {
#if defined(__x86_64__)
  switch (instruction_set()) {
    case InstructionSet::avx512:
      return stream ? avx512::mean_span<true>(experts, weights, k, out, n)
                    : avx512::mean_span<false>(experts, weights, k, out, n);
    case InstructionSet::avx2:
      return stream ? avx2::mean_span<true>(experts, weights, k, out, n)
                    : avx2::mean_span<false>(experts, weights, k, out, n);
    case InstructionSet::portable:
      break;
  }
#endif
  portable::mean_span<false>(experts, weights, k, out, n);
}

template <class In, class Out>
void logit_mean_typed(const std::vector<Tensor>& logits, const Tensor& weights, const Tensor& out) {
  using Acc = Accumulator<In>;
  const int64_t n_experts = static_cast<int64_t>(logits.size());
  const Acc* w = weights.const_data_ptr<Acc>();

  // Where nothing has gaps, the whole tensor is one long row.
  bool dense = out.is_contiguous();
  for (const Tensor& t : logits) dense = dense && t.is_contiguous();
  const int64_t n_columns = dense ? out.numel() : out.size(out.dim() - 1);
  const int64_t n_rows = dense ? 1 : out.numel() / n_columns;

  std::array<const In*, kMaxExperts> base{};
  for (int64_t k = 0; k < n_experts; ++k) base[k] = logits[k].const_data_ptr<In>();
  Out* out_base = out.mutable_data_ptr<Out>();

  const int64_t blocks_per_row = (n_columns + kBlock - 1) / kBlock;
  const bool stream = out.numel() * static_cast<int64_t>(sizeof(Out)) >= kStreamBytes;
  torch::stable::parallel_for(
      0, n_rows * blocks_per_row, 1, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end;) {
          const int64_t row = block / blocks_per_row;
          const int64_t first = block % blocks_per_row;
          const int64_t last = std::min(first + end - block, blocks_per_row);
          const int64_t column = first * kBlock;
          std::array<const In*, kMaxExperts> experts{};
          for (int64_t k = 0; k < n_experts; ++k) {
            experts[k] = base[k] + (dense ? 0 : row_offset(logits[k], row)) + column;
          }
          Out* to = out_base + (dense ? 0 : row_offset(out, row)) + column;
          const int64_t n = std::min(last * kBlock, n_columns) - column;
          mean_span(experts.data(), w, n_experts, to, n, stream);
          block += last - first;
        }
      });
}

template <class In>
void logit_mean_from(const std::vector<Tensor>& logits, const Tensor& weights, const Tensor& out) {
  switch (out.scalar_type()) {
    case ScalarType::Float:
      return logit_mean_typed<In, float>(logits, weights, out);
    case ScalarType::BFloat16:
      return logit_mean_typed<In, BFloat16>(logits, weights, out);
    case ScalarType::Half:
      return logit_mean_typed<In, Half>(logits, weights, out);
    default:
      STD_TORCH_CHECK(false, "logit_mean: out must be float32, bfloat16 or float16");
  }
}

bool last_dimension_is_contiguous(const Tensor& t) {
  return t.size(t.dim() - 1) <= 1 || t.stride(t.dim() - 1) == 1;
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

// Writing over an expert is fine where each element is read just before it is written.
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

// The Python side has checked everything with better messages; here only what keeps memory safe.
void check(const std::vector<Tensor>& logits, const Tensor& weights, const Tensor& out) {
  const int64_t n_experts = static_cast<int64_t>(logits.size());
  STD_TORCH_CHECK(n_experts >= 1 && n_experts <= kMaxExperts,
                  "logit_mean: expected 1 to 64 experts, got ", n_experts);
  const bool is_double = logits[0].scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(weights.is_cpu() && weights.is_contiguous() && weights.numel() == n_experts &&
                      weights.scalar_type() == (is_double ? ScalarType::Double : ScalarType::Float),
                  "logit_mean: weights must be one contiguous accumulator number per expert");
  STD_TORCH_CHECK(out.is_cpu() && out.dim() >= 1 && last_dimension_is_contiguous(out),
                  "logit_mean: out must be a CPU tensor with a contiguous last dimension");
  for (int64_t d = 0; d < out.dim(); ++d) {
    STD_TORCH_CHECK(out.size(d) <= 1 || out.stride(d) != 0,
                    "logit_mean: out must not be expanded, each element needs its own memory");
  }
  for (int64_t k = 0; k < n_experts; ++k) {
    const Tensor& t = logits[k];
    STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == logits[0].scalar_type() &&
                        t.dim() == out.dim() && last_dimension_is_contiguous(t),
                    "logit_mean: expert ", k, " differs in device, dtype, rank or layout");
    for (int64_t d = 0; d < out.dim(); ++d) {
      STD_TORCH_CHECK(t.size(d) == out.size(d), "logit_mean: expert ", k,
                      " differs from out in dimension ", d);
    }
    STD_TORCH_CHECK(out.numel() == 0 || may_write_over(out, t), "logit_mean: out overlaps expert ",
                    k, " in memory; it must be that very tensor or apart from it");
  }
}

void logit_mean_out(std::vector<Tensor> logits, Tensor weights, Tensor out) {
  check(logits, weights, out);
  if (out.numel() == 0) return;
  switch (logits[0].scalar_type()) {
    case ScalarType::Float:
      return logit_mean_from<float>(logits, weights, out);
    case ScalarType::BFloat16:
      return logit_mean_from<BFloat16>(logits, weights, out);
    case ScalarType::Half:
      return logit_mean_from<Half>(logits, weights, out);
    case ScalarType::Double:
      STD_TORCH_CHECK(out.scalar_type() == ScalarType::Double,
                      "logit_mean: the mean of float64 logits is float64");
      return logit_mean_typed<double, double>(logits, weights, out);
    default:
      STD_TORCH_CHECK(false, "logit_mean: logits must be float32, bfloat16, float16 or float64");
  }
}

}  // namespace
}  // namespace fastgrow

STABLE_TORCH_LIBRARY_FRAGMENT(fastgrow_native, m) {
  m.def("logit_mean_out(Tensor[] logits, Tensor weights, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgrow_native, CPU, m) {
  m.impl("logit_mean_out", TORCH_BOX(&fastgrow::logit_mean_out));
}
