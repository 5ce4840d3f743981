#include "parts.h"

namespace fastgrow::cuda {
namespace {

// With `each` the grid's third dimension is the expert, which has separate parts.
template <class Part, class In>
__global__ void __launch_bounds__(kMaxThreads, 3)
    part_kernel(const __grid_constant__ Experts<In> experts, Cut cut, bool each, Part* parts) {
  const Team team(cut.by_warps);
  Row<In>& row = shared<Row<In>[kMaxThreads / kWarp]>()[team.of_block];
  const int only = each ? static_cast<int>(blockIdx.z) : -1;
  const int64_t begin = blockIdx.x * cut.length;
  const int64_t end = min(begin + cut.length, experts.n_columns);
  for (int64_t index = team.first_row(); index < experts.n_rows; index += team.next_row()) {
    read_row(experts, index, team, row, nullptr, only);
    Part part = Part::none();
    for_each_column<In, 2>(team, Span(row, begin, end), [&](auto visit) {
      using V = decltype(visit);
      if (visit.n_valid == 0) return;
      float x[V::n][V::size];
      mean_packs(row, visit, x);
#pragma unroll
      for (int u = 0; u < V::n; ++u) {
        if (u < visit.n_valid) part.add(x[u], visit.column + u * visit.step);
      }
    });
    part = of_team(part, team);
    const int64_t place = (index * gridDim.z + blockIdx.z) * cut.n_parts + blockIdx.x;
    if (team.rank == 0) parts[place] = part;
  }
}

}  // namespace

template <class Part>
void leave_parts(const char* operation, const OnDeviceOf& device, const std::vector<Tensor>& logits,
                 const Tensor& scale, const Plan& plan, Part* parts, bool each) {
  dim3 grid = plan.grid;
  if (each) grid.z = static_cast<unsigned>(logits.size());
  with_type_of(operation, logits[0], [&](auto in) {
    using In = decltype(in);
    device.launch(part_kernel<Part, In>, grid, plan.block,
                  experts_of<In>(operation, logits, scale), plan.cut, each, parts);
  });
}

template void leave_parts<Mass>(const char*, const OnDeviceOf&, const std::vector<Tensor>&,
                                const Tensor&, const Plan&, Mass*, bool);
template void leave_parts<Candidate>(const char*, const OnDeviceOf&, const std::vector<Tensor>&,
                                     const Tensor&, const Plan&, Candidate*, bool);

}  // namespace fastgrow::cuda
