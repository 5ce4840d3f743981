// logit_mean: out[n, v] = sum over k of scale[k] * logits[k][n, v], in one pass over memory.

#include <cstdint>
#include <vector>

#include "launch.h"

namespace fastgrow::cuda {
namespace {

// Packs of each expert that a thread reads at a time.
template <int size>
constexpr int kUnroll = size == 1 ? 1 : 2;
constexpr int kBlocks = 3;  // on a multiprocessor at least: 80 registers a thread

template <class Out, int size>
__device__ void write(Out* out, const float (&sum)[size]) {
  Pack<Out, size> pack;
  for (int i = 0; i < size; ++i) pack.element[i] = from_float<Out>(sum[i]);
  *reinterpret_cast<Pack<Out, size>*>(out) = pack;
}

// A block writes one part of a row; blockIdx.x counts the parts, rows go by gridDim.y.
template <class In, class Out, int size>
__global__ void __launch_bounds__(kThreads, kBlocks)
    logit_mean_kernel(const __grid_constant__ Experts<In> experts, Out* out, int64_t out_stride) {
  __shared__ Row<In> row;
  constexpr int unroll = kUnroll<size>;
  constexpr int64_t step = int64_t{kThreads} * size;
  const int64_t begin = blockIdx.x * step * unroll + threadIdx.x * size;
  for (int64_t index = blockIdx.y; index < experts.n_rows; index += gridDim.y) {
    read_row(experts, index, row);
    Out* to = out + index * out_stride;
    if (begin + (unroll - 1) * step + size <= experts.n_columns) {
      float sum[unroll][size];
      mean_packs<In, size, unroll>(row, begin, step, sum);
#pragma unroll
      for (int u = 0; u < unroll; ++u) write<Out, size>(to + begin + u * step, sum[u]);
      continue;
    }
    for (int u = 0; u < unroll; ++u) {
      const int64_t end = min(begin + u * step + size, experts.n_columns);
      for (int64_t column = begin + u * step; column < end; ++column) {
        float sum[1][1];
        mean_packs<In, 1, 1>(row, column, 0, sum);
        to[column] = from_float<Out>(sum[0][0]);
      }
    }
  }
}

template <class In, class Out, int size>
void launch(const Experts<In>& experts, Out* out, int64_t out_stride, cudaStream_t stream) {
  const int64_t a_block = int64_t{kThreads} * size * kUnroll<size>;
  const int64_t n_parts = (experts.n_columns + a_block - 1) / a_block;
  STD_TORCH_CHECK(n_parts <= 0x7fffffff, "logit_mean: a row is too long");
  const dim3 grid(static_cast<unsigned>(n_parts),
                  rows_at_a_time(experts.n_rows, n_parts));
  logit_mean_kernel<In, Out, size><<<grid, kThreads, 0, stream>>>(experts, out, out_stride);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

struct Bytes {
  const char* begin;
  const char* end;
};

Bytes bytes_of(const Tensor& t) {
  int64_t last = 0;
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  const char* begin = static_cast<const char*>(t.const_data_ptr());
  return {begin, begin + (last + 1) * static_cast<int64_t>(t.element_size())};
}

// Writing over an expert is fine where a thread reads each element just before it writes it.
bool may_write_over(const Tensor& out, const Tensor& t) {
  const Bytes to = bytes_of(out);
  const Bytes from = bytes_of(t);
  if (to.end <= from.begin || from.end <= to.begin) return true;
  return to.begin == from.begin && out.scalar_type() == t.scalar_type() &&
         row_stride(out) == row_stride(t);
}

// The CPU's operator has the same parameters; whether the output is fresh matters there.
void logit_mean_out(std::vector<Tensor> logits, Tensor scale, Tensor out, bool /*fresh*/) {
  check_experts("logit_mean", logits, scale);
  const Tensor& first = logits[0];
  STD_TORCH_CHECK(out.is_cuda() && out.get_device_index() == first.get_device_index() &&
                      out.dim() == first.dim() && out.numel() == first.numel() &&
                      (out.size(out.dim() - 1) <= 1 || out.stride(out.dim() - 1) == 1),
                  "logit_mean: out must be like the logits");
  if (out.numel() == 0) return;
  for (size_t k = 0; k < logits.size(); ++k) {
    STD_TORCH_CHECK(may_write_over(out, logits[k]), "logit_mean: out overlaps expert ", k,
                    " in memory; it must be that very tensor or apart from it");
  }
  const torch::stable::accelerator::DeviceGuard guard(first.get_device_index());
  const cudaStream_t stream = current_stream(first);
  with_type_of("logit_mean", first, [&](auto in) {
    with_type_of("logit_mean", out, [&](auto to) {
      using In = decltype(in);
      using Out = decltype(to);
      const Experts<In> experts = experts_of<In>(logits, scale);
      Out* base = static_cast<Out*>(out.mutable_data_ptr());
      const int64_t stride = row_stride(out);
      STD_TORCH_CHECK(experts.n_rows == 1 || stride >= experts.n_columns,
                      "logit_mean: the rows of out must not overlap");
      // A pack is 16 bytes of the logits; of the output it may be more or less.
      constexpr int size = 16 / sizeof(In);
      const bool packs = is_aligned(experts) && is_aligned(base, stride, experts.n_rows) &&
                         reinterpret_cast<uintptr_t>(base) % sizeof(Pack<Out, size>) == 0 &&
                         (experts.n_rows == 1 || stride % size == 0);
      packs ? launch<In, Out, size>(experts, base, stride, stream)
            : launch<In, Out, 1>(experts, base, stride, stream);
    });
  });
}

}  // namespace
}  // namespace fastgrow::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(fastgrow_cuda, m) {
  m.def("logit_mean_out(Tensor[] logits, Tensor scale, Tensor(a!) out, bool fresh) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgrow_cuda, CUDA, m) {
  m.impl("logit_mean_out", TORCH_BOX(&fastgrow::cuda::logit_mean_out));
}
