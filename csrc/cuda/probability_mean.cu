// The logarithm of a weighted sum of the experts' probabilities: one pass over the logits for each
// expert's log-sum-exp, and one for the sum.

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "parts.h"

namespace fastgrow::cuda {
namespace {

constexpr const char* kName = "probability_mean";

// K numbers, or K numbers for each row.
struct Numbers {
  const float* first;
  bool by_row;

  __device__ const float* of_row(int64_t row, int n_experts) const {
    return first + (by_row ? row * n_experts : 0);
  }
};

// The factors of the experts' exponentials in a row.
struct Factors {
  float offsets[kMaxExperts];  // the logarithm of |weight|, minus the log-sum-exp
  float signs[kMaxExperts];
};

// log sum_k weight[k] * exp(scale[k] * logits[k] - log_sum[k]) of adjacent columns.
template <class In, int size>
__device__ void mixture(const Row<In>& row, const Factors& factors, int64_t column,
                        float (&result)[size]) {
  // The largest term is factored out, so that nothing underflows. If every term is zero, subtracting
  // -inf would give NaN.
  float top[size];
  float sum[size] = {};
#pragma unroll
  for (int i = 0; i < size; ++i) top[i] = -FLT_MAX;
  for_each_four(row.n_experts, [&](auto some, int first) {
    constexpr int count = decltype(some)::value;
    Pack<In, size> pack[count];
#pragma unroll
    for (int k = 0; k < count; ++k) pack[k] = load<In, size>(row.logits[first + k] + column);
#pragma unroll
    for (int i = 0; i < size; ++i) {
      const float before = top[i];
      float term[count];
#pragma unroll
      for (int k = 0; k < count; ++k) {
        // At an infinite temperature all columns are equal, for all logits.
        const float weight = row.weights[first + k];
        const float x = weight == 0 ? 0.0f : static_cast<float>(pack[k].element[i]);
        term[k] = fmaf(weight, x, factors.offsets[first + k]);
        top[i] = fmaxf(top[i], term[k]);
      }
      sum[i] *= exponential(before - top[i]);
#pragma unroll
      for (int k = 0; k < count; ++k) {
        sum[i] = fmaf(factors.signs[first + k], exponential(term[k] - top[i]), sum[i]);
      }
    }
  });
#pragma unroll
  for (int i = 0; i < size; ++i) result[i] = logf(sum[i]) + top[i];
}

// Merges the parts of each row and expert into the first one.
__global__ void __launch_bounds__(kMaxThreads)
    masses_kernel(Mass* masses, int64_t n_parts, int64_t n_rows) {
  const int64_t index = row_of_warp();
  if (index >= n_rows) return;
  const int lane = threadIdx.x % kWarp;
  const Mass mass = of_parts(masses + index * n_parts, n_parts, lane);
  if (lane == 0) masses[index * n_parts] = mass;
}

// `out` is contiguous; `masses` [N, K, parts] are those of each expert, merged in the first part.
template <class In>
__global__ void __launch_bounds__(kMaxThreads, 3)
    mixture_kernel(const __grid_constant__ Experts<In> experts, Cut cut, const Mass* masses,
                   Numbers weights, Numbers log_weights, float* out) {
  const Team team(cut.by_warps);
  Row<In>& row = shared<Row<In>[kMaxThreads / kWarp]>()[team.of_block];
  Factors& factors = shared<Factors[kMaxThreads / kWarp]>()[team.of_block];
  const int64_t begin = blockIdx.x * cut.length;
  const int64_t end = min(begin + cut.length, experts.n_columns);
  for (int64_t index = team.first_row(); index < experts.n_rows; index += team.next_row()) {
    const float* weight = weights.of_row(index, experts.n_experts);
    // Decided by the weights: a factor may also be zero for an infinite temperature.
    read_row(experts, index, team, row, weight);
    for (int place = team.rank; place < row.n_experts; place += team.size) {
      const int k = row.places[place];
      const Mass mass = masses[(index * experts.n_experts + k) * cut.n_parts];
      const float share = log_weights.first == nullptr
                              ? logf(fabsf(weight[k]))
                              : log_weights.of_row(index, experts.n_experts)[k];
      factors.offsets[place] = share - mass.log();
      factors.signs[place] = weight[k] < 0 ? -1.0f : weight[k] > 0 ? 1.0f : weight[k];
    }
    team.sync();
    float* to = out + index * experts.n_columns;
    const Span span(row, begin, end, goes_with(row, to));
    for_each_column<In, 1>(team, span, [&](auto visit) {
      using V = decltype(visit);
#pragma unroll
      for (int u = 0; u < V::n; ++u) {
        if (u >= visit.n_valid) break;
        float result[V::size];
        mixture(row, factors, visit.column + u * visit.step, result);
        store(to + visit.column + u * visit.step, result);
      }
    });
  }
}

Numbers numbers_of(const char* name, const Tensor& t, const std::vector<Tensor>& logits) {
  const int64_t n_experts = static_cast<int64_t>(logits.size());
  const bool by_row = t.dim() != 1;
  check_numbers(kName, name, t, logits[0], by_row ? count_rows(logits[0]) * n_experts : n_experts,
                ScalarType::Float);
  return {t.const_data_ptr<float>(), by_row};
}

// `parts` has 8 bytes for each row, expert and part of a row. `log_weight` replaces the logarithms of
// the weights; an expert with a weight of zero is left out all the same.
void probability_mean(std::vector<Tensor> logits, Tensor scale, std::vector<int64_t> plan,
                      Tensor parts, Tensor weight, std::optional<Tensor> log_weight, Tensor out) {
  check_experts(kName, logits, scale);
  const Tensor& first = logits[0];
  check_numbers(kName, "out", out, first, first.numel(), ScalarType::Float);
  const Numbers weights = numbers_of("weight", weight, logits);
  const Numbers log_weights =
      log_weight ? numbers_of("log_weight", *log_weight, logits) : Numbers{nullptr, false};
  if (first.numel() == 0) return;
  const Plan launch(kName, plan, first);
  const int64_t n_experts = static_cast<int64_t>(logits.size());
  Mass* masses = launch.parts<Mass>(kName, parts, first, n_experts);
  const OnDeviceOf device(first);
  leave_parts(kName, device, logits, scale, launch, masses, true);
  if (launch.cut.n_parts > 1) {
    device.launch(masses_kernel, warp_each(launch.n_rows * n_experts), kMaxThreads, masses,
                  launch.cut.n_parts, launch.n_rows * n_experts);
  }
  with_type_of(kName, first, [&](auto in) {
    using In = decltype(in);
    device.launch(mixture_kernel<In>, launch.grid, launch.block,
                  experts_of<In>(kName, logits, scale), launch.cut, masses, weights, log_weights,
                  out.mutable_data_ptr<float>());
  });
}

}  // namespace
}  // namespace fastgrow::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(fastgrow_cuda, m) {
  m.def(
      "probability_mean_out(Tensor[] logits, Tensor scale, int[] plan, Tensor(a!) parts, "
      "Tensor weight, Tensor? log_weight, Tensor(b!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgrow_cuda, FASTGROW_DEVICE, m) {
  m.impl("probability_mean_out", TORCH_BOX(&fastgrow::cuda::probability_mean));
}
