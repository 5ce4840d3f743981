// One sample per row from the softmax of averaged logits, by inverting the distribution function: one
// pass over the experts for the mass of every block, then a second pass over one block of each row.

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "experts.h"
#include "mean_block.h"

#define FASTGROW_KERNELS "sample.inl"
#include "each_instruction_set.h"

namespace fastgrow {
namespace {

constexpr const char* kName = "mean_sample";

template <class In>
int64_t draw(const Row<In>& row, const Mass* masses, int64_t n_columns, double uniform) {
  const int64_t n_blocks = (n_columns + kBlock - 1) / kBlock;
  Mass total;
  for (int64_t b = 0; b < n_blocks; ++b) total.add(masses[b]);
  if (!(total.sum > 0)) return -1;
  double wanted = uniform * total.sum;
  int64_t chosen = 0;
  for (int64_t b = 0; b < n_blocks; ++b) {
    const double mass = masses[b].relative_to(total.shift());
    // Too small for any uniform number but 0; the masses of its columns would be 0 in float.
    if (mass < 0x1p-53 * total.sum) continue;
    chosen = b;
    if (mass > wanted) break;
    wanted -= mass;
  }
  const int64_t column = chosen * kBlock;
  const int64_t n = std::min(kBlock, n_columns - column);
  return FASTGROW_CALL(column_of_mass(row, column, n, total.shift(), wanted));
}

// A row without a distribution (NaN, +inf, or only -inf) gives -1.
void mean_sample(std::vector<Tensor> logits, Tensor scale, Tensor uniforms, Tensor columns) {
  check_experts(kName, logits, scale);
  const int64_t n_rows = count_rows(logits[0]);
  check_rows(kName, "uniforms", uniforms, n_rows, ScalarType::Double);
  check_rows(kName, "columns", columns, n_rows, ScalarType::Long);
  if (logits[0].numel() == 0) return;
  with_type_of(kName, logits[0], [&](auto zero) {
    using In = decltype(zero);
    const Experts<In> experts(logits, scale);
    const double* uniform = uniforms.const_data_ptr<double>();
    int64_t* column = columns.mutable_data_ptr<int64_t>();
    const int64_t n_blocks = (experts.n_columns + kBlock - 1) / kBlock;
    std::vector<Mass> masses(n_rows * n_blocks);
    for_each_chunk(n_rows, experts.n_columns,
                   [&](int64_t index, int64_t, int64_t begin, int64_t end) {
                     const Row<In> row = experts.row(index);
                     Mass* to = &masses[index * n_blocks + begin / kBlock];
                     FASTGROW_CALL(block_masses(row, begin, end, to));
                   });
    torch::stable::parallel_for(0, n_rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        column[row] = draw(experts.row(row), &masses[row * n_blocks], experts.n_columns,
                           uniform[row]);
      }
    });
  });
}

}  // namespace
}  // namespace fastgrow

STABLE_TORCH_LIBRARY_FRAGMENT(fastgrow_native, m) {
  m.def(
      "mean_sample_out(Tensor[] logits, Tensor scale, Tensor uniforms, Tensor(a!) columns) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgrow_native, CPU, m) {
  m.impl("mean_sample_out", TORCH_BOX(&fastgrow::mean_sample));
}
