// What is read off averaged logits without writing them: a row's log-sum-exp and the logarithm of a
// target's probability, or its largest column. A row is read by several blocks; each leaves a part,
// and a second kernel puts a row's parts together in their order. No atomics: the same input gives
// the same bits.

#include <cstdint>
#include <optional>
#include <vector>

#include "launch.h"

namespace fastgrow::cuda {
namespace {

constexpr float kLog2E = 1.4426950408889634f;
// Packs of each expert that a thread reads at a time.
template <int size>
constexpr int kInFlight = size == 1 ? 1 : 2;
constexpr int kBlocks = 3;  // on a multiprocessor at least: 80 registers a thread

// The sum of exponentials of some logits, relative to the largest that is not NaN.
struct Mass {
  float top;
  float sum;

  static __device__ Mass none() { return {-INFINITY, 0.0f}; }

  // Where every logit is -inf, x - top would be NaN and not -inf.
  __device__ float shift() const { return top == -INFINITY ? 0.0f : top; }

  template <int size>
  __device__ void add(const float (&x)[size], int64_t) {
    const float before = shift();
    for (int i = 0; i < size; ++i) top = fmaxf(top, x[i]);
    const float minus_shift = -shift() * kLog2E;
    if (sum != 0) sum *= exp2f(fmaf(before, kLog2E, minus_shift));
    for (int i = 0; i < size; ++i) sum += exp2f(fmaf(x[i], kLog2E, minus_shift));
  }

  __device__ void add(const Mass& other) {
    const float before = shift();
    top = fmaxf(top, other.top);
    const float after = shift();
    // Nothing stays nothing, however far away.
    if (sum != 0) sum *= exp2f((before - after) * kLog2E);
    if (other.sum != 0) sum += other.sum * exp2f((other.shift() - after) * kLog2E);
  }

  __device__ void add_lane(int offset) {
    add(Mass{__shfl_xor_sync(0xffffffff, top, offset), __shfl_xor_sync(0xffffffff, sum, offset)});
  }
};

// The largest logit and its column, NaN before all numbers and the lower of equal columns first.
struct Best {
  int64_t column;
  float value;

  static __device__ Best none() { return {INT64_MAX, -INFINITY}; }

  __device__ void add(const Best& other) {
    const bool is_nan = value != value;
    const bool other_is_nan = other.value != other.value;
    const bool same = is_nan ? other_is_nan : other.value == value;
    const bool above = is_nan ? false : other_is_nan || other.value > value;
    if (above || (same && other.column < column)) *this = other;
  }

  template <int size>
  __device__ void add(const float (&x)[size], int64_t first) {
    for (int i = 0; i < size; ++i) add(Best{first + i, x[i]});
  }

  __device__ void add_lane(int offset) {
    add(Best{__shfl_xor_sync(0xffffffff, column, offset),
             __shfl_xor_sync(0xffffffff, value, offset)});
  }
};

template <class Part>
__device__ Part of_block(Part part) {
  __shared__ Part of_warp[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) part.add_lane(offset);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = part;
  __syncthreads();
  part = of_warp[0];
  for (int warp = 1; warp < kThreads / 32; ++warp) part.add(of_warp[warp]);
  return part;
}

// blockIdx.y is the row (more follow at gridDim.y), blockIdx.x one of its parts of `length` columns.
template <class Part, class In, int size>
__global__ void __launch_bounds__(kThreads, kBlocks)
    part_kernel(const __grid_constant__ Experts<In> experts, int64_t length, Part* parts) {
  __shared__ Row<In> row;
  constexpr int in_flight = kInFlight<size>;
  constexpr int64_t step = int64_t{kThreads} * size;
  const int64_t begin = blockIdx.x * length;
  const int64_t end = min(begin + length, experts.n_columns);
  for (int64_t index = blockIdx.y; index < experts.n_rows; index += gridDim.y) {
    read_row(experts, index, row);
    Part part = Part::none();
    int64_t column = begin + threadIdx.x * size;
    for (; column + (in_flight - 1) * step + size <= end; column += in_flight * step) {
      float x[in_flight][size];
      mean_packs<In, size, in_flight>(row, column, step, x);
#pragma unroll
      for (int u = 0; u < in_flight; ++u) part.add(x[u], column + u * step);
    }
    for (; column < end; column += step) {
      for (int64_t one = column; one < min(column + size, end); ++one) {
        float x[1][1];
        mean_packs<In, 1, 1>(row, one, 0, x);
        part.add(x[0], one);
      }
    }
    part = of_block(part);
    if (threadIdx.x == 0) parts[index * gridDim.x + blockIdx.x] = part;
  }
}

template <class Part>
__device__ Part of_row(const Part* parts, int n_parts, int64_t row) {
  Part part = parts[row * n_parts];
  for (int i = 1; i < n_parts; ++i) part.add(parts[row * n_parts + i]);
  return part;
}

template <class In>
__global__ void log_probability_kernel(const __grid_constant__ Experts<In> experts,
                                       const Mass* parts, int n_parts, const int64_t* targets,
                                       int64_t ignore_index, float* log_sums,
                                       float* log_probabilities) {
  const int64_t index = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (index >= experts.n_rows) return;
  const Mass mass = of_row(parts, n_parts, index);
  // Reading outside the logits has to be impossible: other targets below zero are left out too.
  const bool is_ignored =
      targets != nullptr && (targets[index] == ignore_index || targets[index] < 0);
  log_sums[index] = is_ignored ? 0.0f : mass.shift() + logf(mass.sum);
  if (targets == nullptr) return;
  float log_probability = 0;
  if (!is_ignored) {
    // A target that is too large gives a wrong number.
    const int64_t column = min(targets[index], experts.n_columns - 1);
    const float* scale = experts.scale + (experts.has_row_factors ? index * experts.n_experts : 0);
    float mean = 0;
    for (int k = 0; k < experts.n_experts; ++k) {
      if (scale[k] == 0) continue;
      const In* logits = experts.logits[k] + index * experts.strides[k];
      mean = fmaf(scale[k], to_float(logits[column]), mean);
    }
    // In this order a large logit's digits are not lost before the small logarithm is added.
    log_probability = (mean - mass.top) - logf(mass.sum);
  }
  log_probabilities[index] = log_probability;
}

__global__ void argmax_kernel(const Best* parts, int n_parts, int64_t n_rows, float* values,
                              int64_t* columns) {
  const int64_t index = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (index >= n_rows) return;
  const Best best = of_row(parts, n_parts, index);
  values[index] = best.value;
  columns[index] = best.column;
}

template <class Part, class In>
void launch_parts(const Experts<In>& experts, const Tensor& parts, cudaStream_t stream) {
  const int64_t n_parts = parts.numel() / experts.n_rows / static_cast<int64_t>(sizeof(Part));
  STD_TORCH_CHECK(n_parts >= 1 && n_parts * experts.n_rows * static_cast<int64_t>(sizeof(Part)) ==
                                      parts.numel(),
                  "parts must be bytes, a whole number of parts for each row");
  constexpr int size = 16 / sizeof(In);
  const int64_t length = ((experts.n_columns + n_parts - 1) / n_parts + size - 1) / size * size;
  const dim3 grid(static_cast<unsigned>(n_parts),
                  rows_at_a_time(experts.n_rows, n_parts));
  Part* to = static_cast<Part*>(parts.mutable_data_ptr());
  if (is_aligned(experts)) {
    part_kernel<Part, In, size><<<grid, kThreads, 0, stream>>>(experts, length, to);
  } else {
    part_kernel<Part, In, 1><<<grid, kThreads, 0, stream>>>(experts, length, to);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

unsigned blocks_of_rows(int64_t n_rows) {
  return static_cast<unsigned>((n_rows + kThreads - 1) / kThreads);
}

// A row whose target is `ignore_index` is left out: both its numbers are zero. `parts` are bytes on the
// device, 8 for each row and part of a row; how many parts there are is the caller's choice.
void log_probability(std::vector<Tensor> logits, Tensor scale, Tensor parts,
                     std::optional<Tensor> targets, int64_t ignore_index, Tensor log_sums,
                     std::optional<Tensor> log_probabilities) {
  const char* name = "mean_log_probability";
  check_experts(name, logits, scale);
  const Tensor& first = logits[0];
  const int64_t n_rows = count_rows(first);
  check_rows(name, "log_sums", log_sums, first, n_rows, ScalarType::Float);
  STD_TORCH_CHECK(targets.has_value() == log_probabilities.has_value(), name,
                  ": targets and log_probabilities go together");
  if (targets) {
    check_rows(name, "targets", *targets, first, n_rows, ScalarType::Long);
    check_rows(name, "log_probabilities", *log_probabilities, first, n_rows, ScalarType::Float);
  }
  if (first.numel() == 0) return;
  check_rows(name, "parts", parts, first, parts.numel(), ScalarType::Byte);
  const torch::stable::accelerator::DeviceGuard guard(first.get_device_index());
  const cudaStream_t stream = current_stream(first);
  with_type_of(name, first, [&](auto in) {
    using In = decltype(in);
    const Experts<In> experts = experts_of<In>(logits, scale);
    launch_parts<Mass>(experts, parts, stream);
    log_probability_kernel<In><<<blocks_of_rows(n_rows), kThreads, 0, stream>>>(
        experts, static_cast<const Mass*>(parts.const_data_ptr()),
        static_cast<int>(parts.numel() / n_rows / static_cast<int64_t>(sizeof(Mass))),
        targets ? targets->const_data_ptr<int64_t>() : nullptr, ignore_index,
        log_sums.mutable_data_ptr<float>(),
        targets ? log_probabilities->mutable_data_ptr<float>() : nullptr);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

// `parts` are 16 bytes for each row and part of a row.
void top_k(std::vector<Tensor> logits, Tensor scale, Tensor parts, int64_t k, Tensor values,
           Tensor columns) {
  const char* name = "mean_top_k";
  STD_TORCH_CHECK(k == 1, name, ": on a GPU it finds the largest alone, not ", k);
  check_experts(name, logits, scale);
  const Tensor& first = logits[0];
  const int64_t n_rows = count_rows(first);
  check_rows(name, "values", values, first, n_rows, ScalarType::Float);
  check_rows(name, "columns", columns, first, n_rows, ScalarType::Long);
  if (first.numel() == 0) return;
  check_rows(name, "parts", parts, first, parts.numel(), ScalarType::Byte);
  const torch::stable::accelerator::DeviceGuard guard(first.get_device_index());
  const cudaStream_t stream = current_stream(first);
  with_type_of(name, first, [&](auto in) {
    using In = decltype(in);
    launch_parts<Best>(experts_of<In>(logits, scale), parts, stream);
  });
  argmax_kernel<<<blocks_of_rows(n_rows), kThreads, 0, stream>>>(
      static_cast<const Best*>(parts.const_data_ptr()),
      static_cast<int>(parts.numel() / n_rows / static_cast<int64_t>(sizeof(Best))), n_rows,
      values.mutable_data_ptr<float>(), columns.mutable_data_ptr<int64_t>());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace
}  // namespace fastgrow::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(fastgrow_cuda, m) {
  m.def(
      "mean_log_probability_out(Tensor[] logits, Tensor scale, Tensor(a!) parts, Tensor? targets, "
      "int ignore_index, Tensor(b!) log_sums, Tensor(c!)? log_probabilities) -> ()");
  m.def(
      "mean_top_k_out(Tensor[] logits, Tensor scale, Tensor(a!) parts, int k, Tensor(b!) values, "
      "Tensor(c!) columns) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgrow_cuda, CUDA, m) {
  m.impl("mean_log_probability_out", TORCH_BOX(&fastgrow::cuda::log_probability));
  m.impl("mean_top_k_out", TORCH_BOX(&fastgrow::cuda::top_k));
}
