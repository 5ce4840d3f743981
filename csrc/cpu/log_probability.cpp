// The logarithm of the probability of a target under averaged logits, and its gradient, with one
// pass over the experts' logits each. The forward pass writes two numbers per row.

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "experts.h"
#include "mean_block.h"

namespace fastgrow {

// Inputs and outputs of the backward pass of a row, indexed like the list of experts.
template <class In>
struct RowGradients {
  int64_t target;
  Accumulator<In> log_sum;
  Accumulator<In> gradient;
  std::array<In*, kMaxExperts> logits;  // null if no gradient is requested
  double* scale;                        // added to; null if not requested
};

}  // namespace fastgrow

#define FASTGROW_KERNELS "log_probability.inl"
#include "each_instruction_set.h"

namespace fastgrow {
namespace {

constexpr const char* kName = "mean_log_probability";

// Gradients of at least this size are written around the caches, which they would fill.
constexpr int64_t kStreamBytes = 4 << 20;

void check_targets(const Tensor& targets, int64_t ignore_index, int64_t n_rows,
                   int64_t n_columns) {
  check_rows(kName, "targets", targets, n_rows, ScalarType::Long);
  const int64_t* target = targets.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < n_rows; ++row) {
    const bool is_column = target[row] >= 0 && target[row] < n_columns;
    STD_TORCH_CHECK(is_column || target[row] == ignore_index, kName, ": target ", target[row],
                    " of row ", row, " is not in [0, ", n_columns, ")");
  }
}

template <class In>
void forward(const Experts<In>& experts, const int64_t* targets, int64_t ignore_index,
             Accumulator<In>* log_sums, Accumulator<In>* log_probabilities) {
  const auto ignored = [&](int64_t row) {
    return targets != nullptr && targets[row] == ignore_index;
  };
  const int64_t n_chunks = count_chunks(experts.n_columns);
  std::vector<Mass> masses(experts.n_rows * n_chunks);
  for_each_chunk(experts.n_rows, experts.n_columns,
                 [&](int64_t index, int64_t chunk, int64_t begin, int64_t end) {
                   if (ignored(index)) return;
                   const Row<In> row = experts.row(index);
                   masses[index * n_chunks + chunk] = FASTGROW_CALL(mass_of(row, begin, end));
                 });
  for (int64_t index = 0; index < experts.n_rows; ++index) {
    Mass mass;
    for (int64_t c = 0; c < n_chunks; ++c) mass.add(masses[index * n_chunks + c]);
    log_sums[index] = ignored(index) ? 0 : static_cast<Accumulator<In>>(mass.log());
    if (targets == nullptr) continue;
    double log_probability = 0;
    if (!ignored(index)) {
      const Row<In> row = experts.row(index);
      // In this order adding the small logarithm to a large logit loses no digits.
      log_probability = FASTGROW_CALL(mean_at(row, targets[index])) - mass.top;
      log_probability -= std::log(mass.sum);
    }
    log_probabilities[index] = static_cast<Accumulator<In>>(log_probability);
  }
}

// A row whose target is `ignore_index` is ignored: both its results are zero.
void log_probability(std::vector<Tensor> logits, Tensor scale, std::optional<Tensor> targets,
                     int64_t ignore_index, Tensor log_sums,
                     std::optional<Tensor> log_probabilities) {
  check_experts(kName, logits, scale);
  const int64_t n_rows = count_rows(logits[0]);
  const ScalarType type = accumulator_type(logits[0]);
  check_rows(kName, "log_sums", log_sums, n_rows, type);
  STD_TORCH_CHECK(targets.has_value() == log_probabilities.has_value(), kName,
                  ": targets and log_probabilities must be given together");
  if (targets) {
    check_targets(*targets, ignore_index, n_rows, logits[0].size(logits[0].dim() - 1));
    check_rows(kName, "log_probabilities", *log_probabilities, n_rows, type);
  }
  if (logits[0].numel() == 0) return;
  with_type_of(kName, logits[0], [&](auto zero) {
    using In = decltype(zero);
    using Acc = Accumulator<In>;
    forward(Experts<In>(logits, scale), targets ? targets->const_data_ptr<int64_t>() : nullptr,
            ignore_index, log_sums.mutable_data_ptr<Acc>(),
            targets ? log_probabilities->mutable_data_ptr<Acc>() : nullptr);
  });
}

template <class In>
void backward(const Experts<In>& experts, const Tensor& targets, int64_t ignore_index,
              const Tensor& log_sums, const Tensor& gradient, const std::vector<In*>& d_logits,
              double* d_scale) {
  using Acc = Accumulator<In>;
  const int64_t* target = targets.const_data_ptr<int64_t>();
  const Acc* log_sum = log_sums.const_data_ptr<Acc>();
  const Acc* factor = gradient.const_data_ptr<Acc>();
  const int64_t n_chunks = count_chunks(experts.n_columns);
  const int64_t bytes = experts.n_rows * experts.n_columns * static_cast<int64_t>(sizeof(In));
  const bool stream = bytes >= kStreamBytes;
  for_each_chunk(experts.n_rows, experts.n_columns,
                 [&](int64_t index, int64_t chunk, int64_t begin, int64_t end) {
    Row<In> row = experts.row(index);
    if (target[index] == ignore_index) row.n_experts = 0;
    RowGradients<In> to{target[index], log_sum[index], factor[index], {}, nullptr};
    std::array<bool, kMaxExperts> takes_part{};
    for (int64_t k = 0; k < row.n_experts; ++k) takes_part[row.places[k]] = true;
    for (int64_t k = 0; k < experts.n_experts; ++k) {
      if (d_logits[k] == nullptr) continue;
      to.logits[k] = d_logits[k] + index * experts.n_columns;
      if (!takes_part[k]) std::fill(to.logits[k] + begin, to.logits[k] + end, In(0.0f));
    }
    if (d_scale != nullptr) to.scale = d_scale + (index * n_chunks + chunk) * experts.n_experts;
    stream ? FASTGROW_CALL(log_probability_backward<true>(row, begin, end, to))
           : FASTGROW_CALL(log_probability_backward<false>(row, begin, end, to));
  });
}

// Gradients of sum(gradient * log_probabilities). `d_logits` are the contiguous results of the experts
// at `places`; `d_scale` is [N, K], for any shape of `scale`, or nothing.
void log_probability_backward(std::vector<Tensor> logits, Tensor scale, Tensor targets,
                              int64_t ignore_index, Tensor log_sums, Tensor gradient,
                              std::vector<Tensor> d_logits, std::vector<int64_t> places,
                              std::optional<Tensor> d_scale) {
  check_experts(kName, logits, scale);
  const Tensor& first = logits[0];
  const int64_t n_rows = count_rows(first);
  const int64_t n_columns = first.size(first.dim() - 1);
  const int64_t n_experts = static_cast<int64_t>(logits.size());
  const ScalarType type = accumulator_type(first);
  check_targets(targets, ignore_index, n_rows, n_columns);
  check_rows(kName, "log_sums", log_sums, n_rows, type);
  check_rows(kName, "gradient", gradient, n_rows, type);
  STD_TORCH_CHECK(places.size() == d_logits.size(), kName,
                  ": places must have one index for each gradient");
  for (size_t i = 0; i < places.size(); ++i) {
    STD_TORCH_CHECK(places[i] >= 0 && places[i] < n_experts && d_logits[i].is_cpu() &&
                        d_logits[i].is_contiguous() && d_logits[i].numel() == first.numel() &&
                        d_logits[i].scalar_type() == first.scalar_type(),
                    kName, ": gradient ", i, " must be contiguous, of the logits' shape and dtype");
  }
  if (d_scale) check_rows(kName, "d_scale", *d_scale, n_rows * n_experts, type);
  if (first.numel() == 0) return;
  with_type_of(kName, first, [&](auto zero) {
    using In = decltype(zero);
    using Acc = Accumulator<In>;
    std::vector<In*> to(n_experts, nullptr);
    for (size_t i = 0; i < places.size(); ++i) {
      to[places[i]] = d_logits[i].mutable_data_ptr<In>();
    }
    const int64_t n_chunks = count_chunks(n_columns);
    std::vector<double> parts(d_scale ? n_rows * n_chunks * n_experts : 0);
    backward(Experts<In>(logits, scale), targets, ignore_index, log_sums, gradient, to,
             d_scale ? parts.data() : nullptr);
    if (!d_scale) return;
    Acc* sums = d_scale->mutable_data_ptr<Acc>();
    for (int64_t i = 0; i < n_rows * n_experts; ++i) {
      double sum = 0;
      for (int64_t c = 0; c < n_chunks; ++c) {
        sum += parts[(i / n_experts * n_chunks + c) * n_experts + i % n_experts];
      }
      sums[i] = static_cast<Acc>(sum);
    }
  });
}

}  // namespace
}  // namespace fastgrow

STABLE_TORCH_LIBRARY_FRAGMENT(fastgrow_native, m) {
  m.def(
      "mean_log_probability_out(Tensor[] logits, Tensor scale, Tensor? targets, "
      "int ignore_index, Tensor(a!) log_sums, Tensor(b!)? log_probabilities) -> ()");
  m.def(
      "mean_log_probability_backward_out(Tensor[] logits, Tensor scale, Tensor targets, "
      "int ignore_index, Tensor log_sums, Tensor gradient, Tensor(a!)[] d_logits, int[] places, "
      "Tensor(b!)? d_scale) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgrow_native, CPU, m) {
  m.impl("mean_log_probability_out", TORCH_BOX(&fastgrow::log_probability));
  m.impl("mean_log_probability_backward_out", TORCH_BOX(&fastgrow::log_probability_backward));
}
