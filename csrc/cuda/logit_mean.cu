// logit_mean: out[n, v] = sum over k of scale[k] * logits[k][n, v], in one pass over memory.

#include <cstdint>
#include <vector>

#include "launch.h"

namespace fastgrow::cuda {
namespace {

constexpr const char* kName = "logit_mean";

template <class In, class Out>
__global__ void __launch_bounds__(kMaxThreads, 3)
    logit_mean_kernel(const __grid_constant__ Experts<In> experts, Cut cut, Out* out, Rows rows) {
  const Team team(cut.by_warps);
  Row<In>& row = shared<Row<In>[kMaxThreads / kWarp]>()[team.of_block];
  const int64_t begin = blockIdx.x * cut.length;
  const int64_t end = min(begin + cut.length, experts.n_columns);
  for (int64_t index = team.first_row(); index < experts.n_rows; index += team.next_row()) {
    read_row(experts, index, team, row);
    Out* to = out + rows(index);
    const Span span(row, begin, end, goes_with(row, to));
    for_each_column<In, 2>(team, span, [&](auto visit) {
      using V = decltype(visit);
      if (visit.n_valid == 0) return;
      float sum[V::n][V::size];
      mean_packs(row, visit, sum);
#pragma unroll
      for (int u = 0; u < V::n; ++u) {
        if (u < visit.n_valid) store(to + visit.column + u * visit.step, sum[u]);
      }
    });
  }
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

// An expert may be overwritten if a thread reads each element just before it writes it.
bool may_write_over(const Tensor& out, const Tensor& t) {
  const Bytes to = bytes_of(out);
  const Bytes from = bytes_of(t);
  if (to.end <= from.begin || from.end <= to.begin) return true;
  bool same = to.begin == from.begin && out.scalar_type() == t.scalar_type();
  for (int64_t d = 0; d < out.dim(); ++d) {
    same = same && (out.size(d) == 1 || out.stride(d) == t.stride(d));
  }
  return same;
}

// The CPU's operator has the same parameters without the plan, and uses `fresh`.
void logit_mean_out(std::vector<Tensor> logits, Tensor scale, std::vector<int64_t> plan, Tensor out,
                    bool /*fresh*/) {
  check_experts(kName, logits, scale);
  const Tensor& first = logits[0];
  STD_TORCH_CHECK(is_on_device(out) && out.get_device_index() == first.get_device_index() &&
                      out.dim() == first.dim() &&
                      (count_columns(out) <= 1 || out.stride(out.dim() - 1) == 1),
                  kName, ": out must be like the logits");
  for (int64_t d = 0; d < out.dim(); ++d) {
    STD_TORCH_CHECK(out.size(d) == first.size(d), kName, ": out differs in dimension ", d);
    STD_TORCH_CHECK(out.size(d) <= 1 || out.stride(d) != 0, kName,
                    ": out must not be expanded: each element needs its own memory");
  }
  if (out.numel() == 0) return;
  for (size_t k = 0; k < logits.size(); ++k) {
    STD_TORCH_CHECK(may_write_over(out, logits[k]), kName, ": out overlaps expert ", k,
                    " in memory; it must be that expert itself or not overlap it");
  }
  const Plan launch(kName, plan, first);
  const OnDeviceOf device(first);
  with_type_of(kName, first, [&](auto in) {
    with_type_of(kName, out, [&](auto to) {
      using In = decltype(in);
      using Out = decltype(to);
      device.launch(logit_mean_kernel<In, Out>, launch.grid, launch.block,
                    experts_of<In>(kName, logits, scale), launch.cut,
                    static_cast<Out*>(out.mutable_data_ptr()), rows_of(kName, out));
    });
  });
}

}  // namespace
}  // namespace fastgrow::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(fastgrow_cuda, m) {
  m.def("logit_mean_out(Tensor[] logits, Tensor scale, int[] plan, Tensor(a!) out, bool fresh) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgrow_cuda, FASTGROW_DEVICE, m) {
  m.impl("logit_mean_out", TORCH_BOX(&fastgrow::cuda::logit_mean_out));
}
