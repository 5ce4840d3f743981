// K logit tensors as a kernel reads them: base pointers and row strides by value, factors from the
// device. Nothing is stacked, and nothing of the host waits for the device.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace fastgrow::cuda {

constexpr int kMaxExperts = 64;
constexpr int kThreads = 256;

template <class In>
struct Experts {
  const In* logits[kMaxExperts];
  int64_t strides[kMaxExperts];  // from row to row, in elements
  const float* scale;            // [K], or [N, K] where `has_row_factors`
  int64_t n_rows;
  int64_t n_columns;
  int n_experts;
  bool has_row_factors;
};

// The experts of one row, in shared memory. A factor of zero takes an expert out: it is not
// multiplied by zero, so that its infinities and NaN stay out too.
template <class In>
struct Row {
  const In* logits[kMaxExperts];
  float weights[kMaxExperts];
  int n_experts;
};

template <class In>
__device__ void read_row(const Experts<In>& experts, int64_t index, Row<In>& row) {
  __syncthreads();
  const float* scale = experts.scale + (experts.has_row_factors ? index * experts.n_experts : 0);
  for (int k = threadIdx.x; k < experts.n_experts; k += blockDim.x) {
    row.logits[k] = experts.logits[k] + index * experts.strides[k];
    row.weights[k] = scale[k];
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int n = 0;
    for (int k = 0; k < experts.n_experts; ++k) {
      if (row.weights[k] == 0) continue;
      row.logits[n] = row.logits[k];
      row.weights[n++] = row.weights[k];
    }
    row.n_experts = n;
  }
  __syncthreads();
}

// `size` neighbouring elements, loaded and stored at once: 16 bytes, or one element where a row
// does not begin at a multiple of that.
template <class T, int size>
struct alignas(sizeof(T) * size) Pack {
  T element[size];
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) { return x; }
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }
template <>
__device__ inline __half from_float<__half>(float x) { return __float2half_rn(x); }

// Each element is read once: it need not displace anything in the first-level cache.
template <class T, int size>
__device__ Pack<T, size> load(const T* p) {
  Pack<T, size> pack;
  if constexpr (sizeof(pack) == 16) {
    const int4 bits = __ldcs(reinterpret_cast<const int4*>(p));
    memcpy(&pack, &bits, sizeof(pack));
  } else {
    pack.element[0] = p[0];
  }
  return pack;
}

template <int experts, class In, int size, int unroll>
__device__ void add_packs(const Row<In>& row, int first, int64_t column, int64_t step,
                          float (&sum)[unroll][size]) {
  Pack<In, size> pack[experts][unroll];
#pragma unroll
  for (int k = 0; k < experts; ++k) {
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      pack[k][u] = load<In, size>(row.logits[first + k] + column + u * step);
    }
  }
#pragma unroll
  for (int k = 0; k < experts; ++k) {
    const float weight = row.weights[first + k];
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
#pragma unroll
      for (int i = 0; i < size; ++i) {
        sum[u][i] = fmaf(weight, to_float(pack[k][u].element[i]), sum[u][i]);
      }
    }
  }
}

// The mean of `unroll` packs, `step` elements from one to the next. The packs of up to four experts
// are on their way at a time.
template <class In, int size, int unroll>
__device__ void mean_packs(const Row<In>& row, int64_t column, int64_t step,
                           float (&sum)[unroll][size]) {
#pragma unroll
  for (int u = 0; u < unroll; ++u) {
#pragma unroll
    for (int i = 0; i < size; ++i) sum[u][i] = 0;
  }
  int k = 0;
  for (; k + 4 <= row.n_experts; k += 4) add_packs<4>(row, k, column, step, sum);
  if (row.n_experts - k == 3) add_packs<3>(row, k, column, step, sum);
  if (row.n_experts - k == 2) add_packs<2>(row, k, column, step, sum);
  if (row.n_experts - k == 1) add_packs<1>(row, k, column, step, sum);
}

}  // namespace fastgrow::cuda
