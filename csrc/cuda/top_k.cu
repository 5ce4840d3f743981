// The k largest averaged logits of each row and their columns, in one pass over the experts. A row is
// read by several blocks; each writes its k largest, and a second kernel merges them.

#include <cstdint>
#include <vector>

#include "parts.h"
#include "top_k.cuh"

namespace fastgrow::cuda {
namespace {

constexpr const char* kName = "mean_top_k";

__global__ void __launch_bounds__(kMaxThreads)
    argmax_kernel(const Candidate* parts, int64_t n_parts, int64_t n_rows, float* values,
                  int64_t* columns) {
  const int64_t index = row_of_warp();
  if (index >= n_rows) return;
  const int lane = threadIdx.x % kWarp;
  const Candidate best = of_parts(parts + index * n_parts, n_parts, lane);
  if (lane != 0) return;
  values[index] = best.value;
  columns[index] = best.column;
}

__global__ void __launch_bounds__(kMaxThreads)
    top_k_kernel(const Candidate* parts, int64_t n_parts, int64_t n_rows, int k, float* values,
                 int64_t* columns) {
  Largest largest(k);
  for (int64_t index = blockIdx.x; index < n_rows; index += gridDim.x) {
    largest.clear();
    offer_parts(largest, parts + index * n_parts * k, n_parts * k);
    const Candidate* best = largest.cut();
    for (int i = threadIdx.x; i < k; i += blockDim.x) {
      values[index * k + i] = best[i].value;
      columns[index * k + i] = best[i].column;
    }
  }
}

// `parts` has 8 bytes for each row, part of a row and one of the k.
void top_k(std::vector<Tensor> logits, Tensor scale, std::vector<int64_t> plan, Tensor parts,
           int64_t k, Tensor values, Tensor columns) {
  check_experts(kName, logits, scale);
  const Tensor& first = logits[0];
  const int64_t n_rows = count_rows(first);
  const int64_t n_columns = count_columns(first);
  STD_TORCH_CHECK(k >= 1 && k <= std::min<int64_t>(n_columns, kMaxTopK), kName, ": k must be 1 to ",
                  std::min<int64_t>(n_columns, kMaxTopK), ", got ", k);
  STD_TORCH_CHECK(n_columns <= kMaxColumns, kName, ": rows may have at most ", kMaxColumns,
                  " columns");
  check_numbers(kName, "values", values, first, n_rows * k, ScalarType::Float);
  check_numbers(kName, "columns", columns, first, n_rows * k, ScalarType::Long);
  if (n_rows == 0) return;
  const Plan launch(kName, plan, first);
  STD_TORCH_CHECK(k == 1 || launch.block.x == kMaxThreads, kName,
                  ": the launch plan must have ", kMaxThreads, " threads per block");
  Candidate* candidates = launch.parts<Candidate>(kName, parts, first, k);
  const OnDeviceOf device(first);
  float* to_values = values.mutable_data_ptr<float>();
  int64_t* to_columns = columns.mutable_data_ptr<int64_t>();
  if (k == 1) {
    leave_parts(kName, device, logits, scale, launch, candidates);
    device.launch(argmax_kernel, warp_each(n_rows), kMaxThreads, candidates, launch.cut.n_parts,
                  n_rows, to_values, to_columns);
  } else {
    with_type_of(kName, first, [&](auto in) {
      using In = decltype(in);
      device.launch(part_largest_kernel<false, In>, launch.grid, launch.block,
                    experts_of<In>(kName, logits, scale), launch.cut, static_cast<int>(k),
                    candidates, static_cast<Mass*>(nullptr));
    });
    device.launch(top_k_kernel, launch.rows_grid, kMaxThreads, candidates, launch.cut.n_parts,
                  n_rows, static_cast<int>(k), to_values, to_columns);
  }
}

}  // namespace
}  // namespace fastgrow::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(fastgrow_cuda, m) {
  m.def(
      "mean_top_k_out(Tensor[] logits, Tensor scale, int[] plan, Tensor(a!) parts, int k, "
      "Tensor(b!) values, Tensor(c!) columns) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgrow_cuda, FASTGROW_DEVICE, m) {
  m.impl("mean_top_k_out", TORCH_BOX(&fastgrow::cuda::top_k));
}
