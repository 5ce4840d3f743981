// The k largest averaged logits of each row and their columns, in one pass over the experts.

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "experts.h"
#include "mean_block.h"
#include "top_k.h"

#define FASTGROW_KERNELS "top_k.inl"
#include "each_instruction_set.h"

namespace fastgrow {
namespace {

constexpr const char* kName = "mean_top_k";

// With fewer rows than this, a row is split into several tasks. The result is the same.
constexpr int64_t kManyRows = 16;

template <class In>
void top_k(const Experts<In>& experts, int64_t k, Accumulator<In>* values, int64_t* columns) {
  using Acc = Accumulator<In>;
  const int64_t n_rows = experts.n_rows;
  const int64_t n_columns = experts.n_columns;
  const int64_t n_parts = n_rows >= kManyRows ? 1 : count_chunks(n_columns);
  const int64_t length = n_parts == 1 ? n_columns : kChunk;
  std::vector<Largest<Acc>> parts(n_parts == 1 ? 0 : n_rows * n_parts, Largest<Acc>(k));
  const auto write = [&](Largest<Acc>&& largest, int64_t row) {
    const auto best = std::move(largest).in_order();
    for (int64_t i = 0; i < k; ++i) {
      values[row * k + i] = best[i].value;
      columns[row * k + i] = best[i].column;
    }
  };
  torch::stable::parallel_for(0, n_rows * n_parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const Row<In> row = experts.row(task / n_parts);
      const int64_t begin = task % n_parts * length;
      const int64_t end = std::min(begin + length, n_columns);
      Largest<Acc> largest(k);
      FASTGROW_CALL(offer_columns(row, begin, end, largest));
      if (n_parts == 1) {
        write(std::move(largest), task);
      } else {
        parts[task] = std::move(largest);
      }
    }
  });
  if (n_parts == 1) return;
  for (int64_t row = 0; row < n_rows; ++row) {
    Largest<Acc> largest(k);
    for (int64_t part = 0; part < n_parts; ++part) largest.offer(parts[row * n_parts + part]);
    write(std::move(largest), row);
  }
}

void mean_top_k(std::vector<Tensor> logits, Tensor scale, int64_t k, Tensor values,
                Tensor columns) {
  check_experts(kName, logits, scale);
  const int64_t n_rows = count_rows(logits[0]);
  STD_TORCH_CHECK(k >= 1 && k <= logits[0].size(logits[0].dim() - 1), kName,
                  ": k must be between 1 and the number of columns, got ", k);
  check_rows(kName, "values", values, n_rows * k, accumulator_type(logits[0]));
  check_rows(kName, "columns", columns, n_rows * k, ScalarType::Long);
  if (n_rows == 0) return;
  with_type_of(kName, logits[0], [&](auto zero) {
    using In = decltype(zero);
    top_k(Experts<In>(logits, scale), k, values.mutable_data_ptr<Accumulator<In>>(),
          columns.mutable_data_ptr<int64_t>());
  });
}

}  // namespace
}  // namespace fastgrow

STABLE_TORCH_LIBRARY_FRAGMENT(fastgrow_native, m) {
  m.def(
      "mean_top_k_out(Tensor[] logits, Tensor scale, int k, Tensor(a!) values, "
      "Tensor(b!) columns) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgrow_native, CPU, m) {
  m.impl("mean_top_k_out", TORCH_BOX(&fastgrow::mean_top_k));
}
