// The logarithm of a weighted sum of the experts' probabilities, from each expert's log-sum-exp.

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "experts.h"
#include "mean_block.h"

#define FASTGROW_KERNELS "probability_mean.inl"
#include "each_instruction_set.h"

namespace fastgrow {
namespace {

constexpr const char* kName = "probability_mean";

template <class In, class Out>
void log_mixtures(const std::vector<Tensor>& logits, const Tensor& scale, const Tensor& offsets,
                  const Tensor& signs, const Tensor& out) {
  using Acc = Accumulator<In>;
  const Experts<In> experts(logits, scale);
  const Acc* offsets_data = offsets.const_data_ptr<Acc>();
  const Acc* signs_data = signs.const_data_ptr<Acc>();
  Out* to = out.mutable_data_ptr<Out>();
  for_each_chunk(experts.n_rows, experts.n_columns,
                 [&](int64_t index, int64_t, int64_t begin, int64_t end) {
                   const Acc* offset = offsets_data + index * experts.n_experts;
                   const Acc* sign = signs_data + index * experts.n_experts;
                   // An expert is left out if its sign is zero. Its factor does not decide this: it is also
                   // zero for an infinite temperature.
                   const Row<In> row = experts.row(index, sign);
                   std::array<Acc, kMaxExperts> of, si;
                   for (int64_t k = 0; k < row.n_experts; ++k) {
                     of[k] = offset[row.places[k]];
                     si[k] = sign[row.places[k]];
                   }
                   Out* row_out = to + index * experts.n_columns;
                   FASTGROW_CALL(log_mixture(row, of.data(), si.data(), row_out, begin, end));
                 });
}

// out = log sum_k signs[n, k] * exp(scale[k] * logits[k] + offsets[n, k]), contiguous. Experts with a
// sign of zero are left out.
void probability_mean(std::vector<Tensor> logits, Tensor scale, Tensor offsets, Tensor signs,
                      Tensor out) {
  check_experts(kName, logits, scale);
  const int64_t n_terms = count_rows(logits[0]) * static_cast<int64_t>(logits.size());
  check_rows(kName, "offsets", offsets, n_terms, accumulator_type(logits[0]));
  check_rows(kName, "signs", signs, n_terms, accumulator_type(logits[0]));
  STD_TORCH_CHECK(out.is_cpu() && out.is_contiguous() && out.numel() == logits[0].numel(), kName,
                  ": out must be contiguous, of the logits' shape");
  if (out.numel() == 0) return;
  with_type_of(kName, logits[0], [&](auto zero) {
    using In = decltype(zero);
    if constexpr (std::is_same_v<In, double>) {
      log_mixtures<double, double>(logits, scale, offsets, signs, out);
    } else {
      log_mixtures<In, float>(logits, scale, offsets, signs, out);
    }
  });
}

}  // namespace
}  // namespace fastgrow

STABLE_TORCH_LIBRARY_FRAGMENT(fastgrow_native, m) {
  m.def(
      "probability_mean_out(Tensor[] logits, Tensor scale, Tensor offsets, Tensor signs, "
      "Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgrow_native, CPU, m) {
  m.impl("probability_mean_out", TORCH_BOX(&fastgrow::probability_mean));
}
