// The logarithm of the probability of a target under averaged logits, and its gradient, with one
// pass over the experts' logits each. The forward pass writes two numbers per row.

#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "parts.h"

namespace fastgrow::cuda {
namespace {

constexpr const char* kName = "mean_log_probability";

// The targets of the rows. Reads outside the logits must be impossible: a negative target is treated
// like an ignored one, and one that is too large gives a wrong result.
struct Targets {
  const int64_t* of_rows;
  int64_t ignore_index;
  int64_t n_columns;

  __device__ bool is_ignored(int64_t row) const {
    return of_rows != nullptr && (of_rows[row] == ignore_index || of_rows[row] < 0);
  }
  __device__ int64_t column(int64_t row) const { return min(of_rows[row], n_columns - 1); }
};

template <class In>
__global__ void __launch_bounds__(kMaxThreads)
    log_probability_kernel(const __grid_constant__ Experts<In> experts, const Mass* parts,
                           int64_t n_parts, Targets targets, float* log_sums,
                           float* log_probabilities) {
  const int64_t index = row_of_warp();
  if (index >= experts.n_rows) return;
  const int lane = threadIdx.x % kWarp;
  const Mass mass = of_parts(parts + index * n_parts, n_parts, lane);
  const bool is_ignored = targets.is_ignored(index);
  if (lane == 0) log_sums[index] = is_ignored ? 0.0f : mass.log();
  if (targets.of_rows == nullptr) return;
  float mean = 0;
  if (!is_ignored) {
    // Each lane reads an expert, and all lanes add the values in the same order.
    const float* scale = experts.scale_of(index);
    for (int base = 0; base < experts.n_experts; base += kWarp) {
      const int own = base + lane;
      const float factor = own < experts.n_experts ? scale[own] : 0.0f;
      float logit = 0;
      if (factor != 0) {
        const In* logits = experts.logits[own] + experts.rows[own](index);
        logit = static_cast<float>(logits[targets.column(index)]);
      }
      for (int k = 0; k < min(kWarp, experts.n_experts - base); ++k) {
        const float of_expert = __shfl_sync(kAllLanes, factor, k);
        mean = fmaf(of_expert, __shfl_sync(kAllLanes, logit, k), mean);
      }
    }
  }
  // In this order adding the small logarithm to a large logit loses no digits.
  const float log_probability = is_ignored ? 0.0f : (mean - mass.top) - logf(mass.sum);
  if (lane == 0) log_probabilities[index] = log_probability;
}

// A row whose target is `ignore_index` is ignored: both its results are zero. `parts` is device memory
// of 8 bytes for each row and part of a row.
void log_probability(std::vector<Tensor> logits, Tensor scale, std::vector<int64_t> plan,
                     Tensor parts, std::optional<Tensor> targets, int64_t ignore_index,
                     Tensor log_sums, std::optional<Tensor> log_probabilities) {
  check_experts(kName, logits, scale);
  const Tensor& first = logits[0];
  const int64_t n_rows = count_rows(first);
  check_numbers(kName, "log_sums", log_sums, first, n_rows, ScalarType::Float);
  STD_TORCH_CHECK(targets.has_value() == log_probabilities.has_value(), kName,
                  ": targets and log_probabilities must be given together");
  if (targets) {
    check_numbers(kName, "targets", *targets, first, n_rows, ScalarType::Long);
    check_numbers(kName, "log_probabilities", *log_probabilities, first, n_rows, ScalarType::Float);
  }
  if (first.numel() == 0) return;
  const Plan launch(kName, plan, first);
  Mass* masses = launch.parts<Mass>(kName, parts, first);
  const OnDeviceOf device(first);
  leave_parts(kName, device, logits, scale, launch, masses);
  with_type_of(kName, first, [&](auto in) {
    using In = decltype(in);
    const Experts<In> experts = experts_of<In>(kName, logits, scale);
    const Targets of_rows{targets ? targets->const_data_ptr<int64_t>() : nullptr, ignore_index,
                          experts.n_columns};
    device.launch(log_probability_kernel<In>, warp_each(n_rows), kMaxThreads, experts, masses,
                  launch.cut.n_parts, of_rows, log_sums.mutable_data_ptr<float>(),
                  targets ? log_probabilities->mutable_data_ptr<float>() : nullptr);
  });
}

// Inputs and outputs of the backward pass; contiguous.
template <class In>
struct Gradients {
  const float* log_sums;   // [N]
  const float* of_rows;    // [N]
  In* logits[kMaxExperts];  // [N, V]; null if not requested
  float* scale;            // [N, parts, K], of the factors; null if not requested
  bool in_packs;           // whether gradients are aligned at the same columns as logits
};

// d logits[k] = scale[k] * g * (one-hot - softmax), d scale[k] = sum of g * (one-hot - softmax) *
// logits[k]: summed over the lanes of a warp, then over the warp's columns, then over the warps.
template <class In>
__global__ void __launch_bounds__(kMaxThreads, 2)
    log_probability_backward_kernel(const __grid_constant__ Experts<In> experts, Cut cut,
                                    Targets targets, const __grid_constant__ Gradients<In> to) {
  const Team team(cut.by_warps);
  Row<In>& row = shared<Row<In>[kMaxThreads / kWarp]>()[team.of_block];
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  float* of_scale = shared<float[kMaxThreads / kWarp][kMaxExperts]>()[warp];
  const int64_t begin = blockIdx.x * cut.length;
  const int64_t end = min(begin + cut.length, experts.n_columns);
  for (int64_t index = team.first_row(); index < experts.n_rows; index += team.next_row()) {
    read_row(experts, index, team, row);
    const bool is_ignored = targets.is_ignored(index);
    const int n_experts = is_ignored ? 0 : row.n_experts;
    const int64_t target = is_ignored ? -1 : targets.column(index);
    const float gradient = to.of_rows[index];
    const float log_sum = to.log_sums[index];
    const int64_t offset = index * experts.n_columns;
    for (int k = lane; k < experts.n_experts; k += kWarp) of_scale[k] = 0;
    __syncwarp();
    const bool in_packs = to.in_packs && (offset + row.head) % kPack<In> == 0;
    for_each_column<In, 2>(team, Span(row, begin, end, in_packs), [&](auto visit) {
      using V = decltype(visit);
      float d[V::n][V::size];
      if (visit.n_valid > 0 && n_experts > 0) {
        // Not `once`: the factors' gradients read the logits again.
        mean_packs<false>(row, visit, d);
#pragma unroll
        for (int u = 0; u < V::n; ++u) {
#pragma unroll
          for (int i = 0; i < V::size; ++i) {
            const int64_t column = visit.column + u * visit.step + i;
            const float is_target = column == target ? 1.0f : 0.0f;
            d[u][i] = gradient * (is_target - exponential(d[u][i] - log_sum));
          }
        }
      }
      for (int place = 0; place < n_experts; ++place) {
        const int k = row.places[place];
        const float weight = row.weights[place];
        float dot = 0;
#pragma unroll
        for (int u = 0; u < V::n; ++u) {
          if (u >= visit.n_valid) break;
          const int64_t column = visit.column + u * visit.step;
          if (to.scale != nullptr) {
            const auto pack = load<In, V::size, false>(row.logits[place] + column);
#pragma unroll
            for (int i = 0; i < V::size; ++i) {
              dot = fmaf(d[u][i], static_cast<float>(pack.element[i]), dot);
            }
          }
          if (to.logits[k] != nullptr) {
            float x[V::size];
#pragma unroll
            for (int i = 0; i < V::size; ++i) x[i] = weight * d[u][i];
            store(to.logits[k] + offset + column, x);
          }
        }
        if (to.scale != nullptr) {
          for (int step = kWarp / 2; step > 0; step /= 2) {
            dot += __shfl_xor_sync(kAllLanes, dot, step);
          }
          if (lane == 0) of_scale[k] += dot;
        }
      }
    });
    // The gradients of experts that take no part.
    const bool all_take_part = n_experts == experts.n_experts;
    for (int k = 0; k < (all_take_part ? 0 : experts.n_experts); ++k) {
      if (to.logits[k] == nullptr || (!is_ignored && experts.scale_of(index)[k] != 0)) continue;
      for (int64_t column = begin + team.rank; column < end; column += team.size) {
        to.logits[k][offset + column] = static_cast<In>(0.0f);
      }
    }
    if (to.scale == nullptr) continue;
    team.sync();
    const int64_t part = index * cut.n_parts + blockIdx.x;
    for (int k = team.rank; k < experts.n_experts; k += team.size) {
      float sum = of_scale[k];
      if (!cut.by_warps) {
        const auto& of_warps = shared<float[kMaxThreads / kWarp][kMaxExperts]>();
        sum = 0;
        for (int w = 0; w < team.size / kWarp; ++w) sum += of_warps[w][k];
      }
      to.scale[part * experts.n_experts + k] = sum;
    }
  }
}

// Gradients of sum(gradient * log_probabilities). `d_logits` are the contiguous results of the experts
// at `places`; `d_scale` is [N, parts, K], for any shape of `scale`, or nothing.
void log_probability_backward(std::vector<Tensor> logits, Tensor scale, std::vector<int64_t> plan,
                              Tensor targets, int64_t ignore_index, Tensor log_sums,
                              Tensor gradient, std::vector<Tensor> d_logits,
                              std::vector<int64_t> places, std::optional<Tensor> d_scale) {
  check_experts(kName, logits, scale);
  const Tensor& first = logits[0];
  const int64_t n_rows = count_rows(first);
  const int64_t n_experts = static_cast<int64_t>(logits.size());
  check_numbers(kName, "targets", targets, first, n_rows, ScalarType::Long);
  check_numbers(kName, "log_sums", log_sums, first, n_rows, ScalarType::Float);
  check_numbers(kName, "gradient", gradient, first, n_rows, ScalarType::Float);
  STD_TORCH_CHECK(places.size() == d_logits.size(), kName,
                  ": places must have one index for each gradient");
  for (size_t i = 0; i < places.size(); ++i) {
    STD_TORCH_CHECK(places[i] >= 0 && places[i] < n_experts, kName,
                    ": places contains an invalid expert ", places[i]);
    check_numbers(kName, "d_logits", d_logits[i], first, first.numel(), first.scalar_type());
  }
  if (first.numel() == 0) return;
  const Plan launch(kName, plan, first);
  if (d_scale) {
    check_numbers(kName, "d_scale", *d_scale, first, n_rows * launch.cut.n_parts * n_experts,
                  ScalarType::Float);
  }
  const OnDeviceOf device(first);
  with_type_of(kName, first, [&](auto in) {
    using In = decltype(in);
    const Experts<In> experts = experts_of<In>(kName, logits, scale);
    Gradients<In> to{log_sums.const_data_ptr<float>(), gradient.const_data_ptr<float>(), {},
                     d_scale ? d_scale->mutable_data_ptr<float>() : nullptr, true};
    for (size_t i = 0; i < places.size(); ++i) {
      In* memory = static_cast<In*>(d_logits[i].mutable_data_ptr());
      to.logits[places[i]] = memory;
      to.in_packs = to.in_packs && reinterpret_cast<uintptr_t>(memory) % kPackBytes == 0;
    }
    device.launch(log_probability_backward_kernel<In>, launch.grid, launch.block, experts,
                  launch.cut,
                  Targets{targets.const_data_ptr<int64_t>(), ignore_index, experts.n_columns}, to);
  });
}

}  // namespace
}  // namespace fastgrow::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(fastgrow_cuda, m) {
  m.def(
      "mean_log_probability_out(Tensor[] logits, Tensor scale, int[] plan, Tensor(a!) parts, "
      "Tensor? targets, int ignore_index, Tensor(b!) log_sums, Tensor(c!)? log_probabilities) "
      "-> ()");
  m.def(
      "mean_log_probability_backward_out(Tensor[] logits, Tensor scale, int[] plan, "
      "Tensor targets, int ignore_index, Tensor log_sums, Tensor gradient, "
      "Tensor(a!)[] d_logits, int[] places, Tensor(b!)? d_scale) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgrow_cuda, FASTGROW_DEVICE, m) {
  m.impl("mean_log_probability_out", TORCH_BOX(&fastgrow::cuda::log_probability));
  m.impl("mean_log_probability_backward_out",
         TORCH_BOX(&fastgrow::cuda::log_probability_backward));
}
