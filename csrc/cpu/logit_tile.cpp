// Tiles of a head's logits, [rows, some columns of the vocabulary] in float32, which a product has just
// written to the caches: their contribution to each row's log-sum-exp, and their gradient in place.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "experts.h"
#include "log_sum.h"
#include "mean_block.h"

namespace fastgrow {

// d logit = of_log_sum * exp(logit - log_sum) + of_each.
struct RowGradient {
  float log_sum;
  float of_log_sum;
  float of_each;
};

}  // namespace fastgrow

#define FASTGROW_KERNELS "logit_tile.inl"
#include "each_instruction_set.h"

namespace fastgrow {
namespace {

constexpr const char* kName = "logit_tile";
constexpr int64_t kTerms = 3;  // fields of a LogSum, in a row of the sums

struct Tile {
  Tile(const Tensor& logits, const std::optional<Tensor>& bias, const Tensor& targets,
       int64_t first_column)
      : n_rows(logits.size(0)),
        n_columns(logits.size(1)),
        stride(logits.stride(0)),
        bias(bias ? bias->const_data_ptr<float>() : nullptr),
        targets_(targets.const_data_ptr<int64_t>()),
        first_column_(first_column) {}

  // The row's target as a column of the tile; -1 if it is in another tile.
  int64_t target(int64_t row) const {
    if (targets_[row] < first_column_) return -1;
    const int64_t column = targets_[row] - first_column_;
    return column < n_columns ? column : -1;
  }

  const int64_t n_rows;
  const int64_t n_columns;
  const int64_t stride;
  const float* const bias;

 private:
  const int64_t* targets_;
  int64_t first_column_;
};

void check_tile(const Tensor& logits, const std::optional<Tensor>& bias, const Tensor& targets) {
  STD_TORCH_CHECK(logits.is_cpu() && logits.dim() == 2 && last_dimension_is_contiguous(logits) &&
                      logits.scalar_type() == ScalarType::Float,
                  kName, ": logits must be [rows, columns] in float32, columns contiguous");
  if (bias) check_rows(kName, "bias", *bias, logits.size(1), ScalarType::Float);
  check_rows(kName, "targets", targets, logits.size(0), ScalarType::Long);
}

// Adds to sums [rows, 3] (LogSum) and writes the logits of targets that are in the tile.
void add_log_sums(Tensor logits, std::optional<Tensor> bias, Tensor targets, int64_t first_column,
                  Tensor sums, Tensor target_logits) {
  check_tile(logits, bias, targets);
  const Tile tile(logits, bias, targets, first_column);
  check_rows(kName, "sums", sums, tile.n_rows * kTerms, ScalarType::Double);
  check_rows(kName, "target_logits", target_logits, tile.n_rows, ScalarType::Float);
  const float* from = logits.const_data_ptr<float>();
  double* state = sums.mutable_data_ptr<double>();
  float* target_logit = target_logits.mutable_data_ptr<float>();
  const int64_t n_chunks = count_chunks(tile.n_columns);
  std::vector<LogSum> parts(tile.n_rows * n_chunks);
  for_each_chunk(tile.n_rows, tile.n_columns,
                 [&](int64_t row, int64_t chunk, int64_t begin, int64_t end) {
                   const float* bias_here = tile.bias == nullptr ? nullptr : tile.bias + begin;
                   const float* here = from + row * tile.stride + begin;
                   parts[row * n_chunks + chunk] =
                       FASTGROW_CALL(log_sum_of(here, bias_here, end - begin));
                 });
  torch::stable::parallel_for(0, tile.n_rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      double* terms = state + row * kTerms;
      LogSum sum{terms[0], terms[1], terms[2]};
      for (int64_t c = 0; c < n_chunks; ++c) sum.add(parts[row * n_chunks + c]);
      terms[0] = sum.top;
      terms[1] = sum.mass;
      terms[2] = sum.total;
      const int64_t target = tile.target(row);
      if (target < 0) continue;
      target_logit[row] = from[row * tile.stride + target];
      if (tile.bias != nullptr) target_logit[row] += tile.bias[target];
    }
  });
}

// Replaces logits by of_log_sum * softmax + of_each, plus of_target at the target; of_each is optional.
// A row with a mass of zero gets no gradient through the softmax.
void gradient(Tensor logits, std::optional<Tensor> bias, Tensor targets, int64_t first_column,
              Tensor log_sums, Tensor of_log_sum, Tensor of_target,
              std::optional<Tensor> of_each) {
  check_tile(logits, bias, targets);
  STD_TORCH_CHECK(logits.size(0) <= 1 || logits.stride(0) >= logits.size(1), kName,
                  ": rows of logits must not overlap, because they are overwritten");
  const Tile tile(logits, bias, targets, first_column);
  check_rows(kName, "log_sums", log_sums, tile.n_rows, ScalarType::Float);
  check_rows(kName, "of_log_sum", of_log_sum, tile.n_rows, ScalarType::Float);
  check_rows(kName, "of_target", of_target, tile.n_rows, ScalarType::Float);
  if (of_each) check_rows(kName, "of_each", *of_each, tile.n_rows, ScalarType::Float);
  float* to = logits.mutable_data_ptr<float>();
  const float* log_sum = log_sums.const_data_ptr<float>();
  const float* factor = of_log_sum.const_data_ptr<float>();
  const float* on_target = of_target.const_data_ptr<float>();
  const float* each = of_each ? of_each->const_data_ptr<float>() : nullptr;
  for_each_chunk(tile.n_rows, tile.n_columns,
                 [&](int64_t row, int64_t, int64_t begin, int64_t end) {
                   const bool is_empty = log_sum[row] == -std::numeric_limits<float>::infinity();
                   const RowGradient of_row{is_empty ? 0 : log_sum[row], factor[row],
                                            each == nullptr ? 0 : each[row]};
                   const float* bias_here = tile.bias == nullptr ? nullptr : tile.bias + begin;
                   float* here = to + row * tile.stride;
                   FASTGROW_CALL(gradients_of(here + begin, bias_here, end - begin, of_row));
                   const int64_t target = tile.target(row);
                   if (target >= begin && target < end) here[target] += on_target[row];
                 });
}

}  // namespace
}  // namespace fastgrow

STABLE_TORCH_LIBRARY_FRAGMENT(fastgrow_native, m) {
  m.def(
      "logit_tile_add_log_sums(Tensor logits, Tensor? bias, Tensor targets, int first_column, "
      "Tensor(a!) sums, Tensor(b!) target_logits) -> ()");
  m.def(
      "logit_tile_gradient_(Tensor(a!) logits, Tensor? bias, Tensor targets, int first_column, "
      "Tensor log_sums, Tensor of_log_sum, Tensor of_target, Tensor? of_each) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgrow_native, CPU, m) {
  m.impl("logit_tile_add_log_sums", TORCH_BOX(&fastgrow::add_log_sums));
  m.impl("logit_tile_gradient_", TORCH_BOX(&fastgrow::gradient));
}
