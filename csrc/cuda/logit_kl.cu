// KL divergence of a student's predictions from those of K teachers' averaged logits, and its gradient:
// two passes over the logits of some rows, which products have just written.
//
//     t = sum over k of scale[k] * logits[k],  z = factor * student
//     p = softmax(t),  q = softmax(z),  loss = sum over v of p * (log p - log q)

#include <cmath>
#include <cstdint>
#include <vector>

#include "launch.h"
#include "reductions.cuh"

namespace fastgrow::cuda {
namespace {

constexpr const char* kName = "logit_kl";

// Sums over some columns: the masses of t and z, and the sum of exp(t - t's top) * ((t - t's top) -
// (z - z's top)). Differences from the tops stay small if the logits themselves are large.
struct Divergence {
  Mass teacher;
  Mass student;
  float cross;

  static __device__ Divergence none() { return {Mass::none(), Mass::none(), 0.0f}; }

  // `cross` relative to other tops.
  __device__ float cross_under(float teacher_shift, float student_shift) const {
    if (teacher.sum == 0) return 0;
    const float up = teacher.shift() - teacher_shift;
    const float factor = exponential(up);
    // Zero, however far away the student is.
    if (factor == 0) return 0;
    const float moved = up - (student.shift() - student_shift);
    return factor * fmaf(moved, teacher.sum, cross);
  }

  template <int size>
  __device__ void add(const float (&t)[size], const float (&z)[size], int64_t column) {
    const Divergence before = *this;
    teacher.add(t, column);
    student.add(z, column);
    cross = before.cross_under(teacher.shift(), student.shift());
    for (int i = 0; i < size; ++i) {
      const float own = t[i] - teacher.shift();
      const float mass = exponential(own);
      // Columns without mass of the teacher contribute nothing.
      if (mass > 0) cross += mass * (own - (z[i] - student.shift()));
    }
  }

  __device__ void add(const Divergence& other) {
    const Divergence before = *this;
    teacher.add(other.teacher);
    student.add(other.student);
    cross = before.cross_under(teacher.shift(), student.shift()) +
            other.cross_under(teacher.shift(), student.shift());
  }

  __device__ Divergence of_lane(int offset) const {
    return {teacher.of_lane(offset), student.of_lane(offset),
            __shfl_xor_sync(kAllLanes, cross, offset)};
  }

  __device__ float loss() const { return cross / teacher.sum - logf(teacher.sum) + logf(student.sum); }
};

template <class In>
struct Student {
  In* logits;  // [N, V]
  int64_t stride;
  float factor;
};

template <class In, class V>
__device__ void read_student(const In* from, float factor, const V& visit,
                             float (&z)[V::n][V::size]) {
#pragma unroll
  for (int u = 0; u < V::n; ++u) {
    const auto pack = load<In, V::size>(from + visit.offset(u));
#pragma unroll
    for (int i = 0; i < V::size; ++i) z[u][i] = factor * static_cast<float>(pack.element[i]);
  }
}

template <class In>
__global__ void __launch_bounds__(kMaxThreads, 3)
    part_divergence_kernel(const __grid_constant__ Experts<In> experts, Cut cut,
                           Student<In> student, Divergence* parts) {
  const Team team(cut.by_warps);
  Row<In>& row = shared<Row<In>[kMaxThreads / kWarp]>()[team.of_block];
  const int64_t begin = blockIdx.x * cut.length;
  const int64_t end = min(begin + cut.length, experts.n_columns);
  for (int64_t index = team.first_row(); index < experts.n_rows; index += team.next_row()) {
    read_row(experts, index, team, row);
    const In* from = student.logits + index * student.stride;
    Divergence part = Divergence::none();
    for_each_column<In, 1>(team, Span(row, begin, end, goes_with(row, from)), [&](auto visit) {
      using V = decltype(visit);
      if (visit.n_valid == 0) return;
      float t[V::n][V::size];
      float z[V::n][V::size];
      read_student(from, student.factor, visit, z);
      mean_packs(row, visit, t);
#pragma unroll
      for (int u = 0; u < V::n; ++u) {
        if (u < visit.n_valid) part.add(t[u], z[u], visit.column + u * visit.step);
      }
    });
    part = of_team(part, team);
    if (team.rank == 0) parts[index * cut.n_parts + blockIdx.x] = part;
  }
}

__global__ void __launch_bounds__(kMaxThreads)
    divergence_kernel(const Divergence* parts, int64_t n_parts, int64_t n_rows, float* losses,
                      float* log_sums) {
  const int64_t index = row_of_warp();
  if (index >= n_rows) return;
  const int lane = threadIdx.x % kWarp;
  const Divergence whole = of_parts(parts + index * n_parts, n_parts, lane);
  if (lane != 0) return;
  losses[index] = whole.loss();
  log_sums[2 * index] = whole.teacher.log();
  log_sums[2 * index + 1] = whole.student.log();
}

// Replaces the student's logits by of_rows * (q - p).
template <class In>
__global__ void __launch_bounds__(kMaxThreads, 3)
    divergence_gradient_kernel(const __grid_constant__ Experts<In> experts, Cut cut,
                               Student<In> student, const float* log_sums, const float* of_rows) {
  const Team team(cut.by_warps);
  Row<In>& row = shared<Row<In>[kMaxThreads / kWarp]>()[team.of_block];
  const int64_t begin = blockIdx.x * cut.length;
  const int64_t end = min(begin + cut.length, experts.n_columns);
  for (int64_t index = team.first_row(); index < experts.n_rows; index += team.next_row()) {
    read_row(experts, index, team, row);
    In* to = student.logits + index * student.stride;
    const float of_teacher = log_sums[2 * index];
    const float of_student = log_sums[2 * index + 1];
    const float of_row = of_rows[index];
    for_each_column<In, 1>(team, Span(row, begin, end, goes_with(row, to)), [&](auto visit) {
      using V = decltype(visit);
      if (visit.n_valid == 0) return;
      float t[V::n][V::size];
      float z[V::n][V::size];
      read_student(to, student.factor, visit, z);
      mean_packs(row, visit, t);
#pragma unroll
      for (int u = 0; u < V::n; ++u) {
#pragma unroll
        for (int i = 0; i < V::size; ++i) {
          z[u][i] = of_row * (exponential(z[u][i] - of_student) - exponential(t[u][i] - of_teacher));
        }
        if (u < visit.n_valid) store(to + visit.column + u * visit.step, z[u]);
      }
    });
  }
}

void check(const std::vector<Tensor>& logits, const Tensor& scale, const Tensor& student) {
  check_experts(kName, logits, scale);
  const Tensor& first = logits[0];
  STD_TORCH_CHECK(first.dim() == 2 && student.dim() == 2 && is_on_device(student) &&
                      student.get_device_index() == first.get_device_index() &&
                      student.scalar_type() == first.scalar_type() &&
                      student.size(0) == first.size(0) && student.size(1) == first.size(1) &&
                      (student.size(1) <= 1 || student.stride(1) == 1) &&
                      (student.size(0) <= 1 || student.stride(0) >= student.size(1)),
                  kName, ": the student's logits must have the teachers' device, dtype and shape, "
                  "and rows that do not overlap");
}

// `parts` has 24 bytes for each row and part of a row; `log_sums` are those of t and z, [N, 2].
void logit_kl(std::vector<Tensor> logits, Tensor scale, std::vector<int64_t> plan, Tensor parts,
              Tensor student, double factor, Tensor losses, Tensor log_sums) {
  check(logits, scale, student);
  const Tensor& first = logits[0];
  const int64_t n_rows = count_rows(first);
  check_numbers(kName, "losses", losses, first, n_rows, ScalarType::Float);
  check_numbers(kName, "log_sums", log_sums, first, 2 * n_rows, ScalarType::Float);
  if (first.numel() == 0) return;
  const Plan launch(kName, plan, first);
  Divergence* divergences = launch.parts<Divergence>(kName, parts, first);
  const OnDeviceOf device(first);
  with_type_of(kName, first, [&](auto in) {
    using In = decltype(in);
    const Student<In> from{static_cast<In*>(student.mutable_data_ptr()), student.stride(0),
                           static_cast<float>(factor)};
    device.launch(part_divergence_kernel<In>, launch.grid, launch.block,
                  experts_of<In>(kName, logits, scale), launch.cut, from, divergences);
  });
  device.launch(divergence_kernel, warp_each(n_rows), kMaxThreads, divergences, launch.cut.n_parts,
                n_rows, losses.mutable_data_ptr<float>(), log_sums.mutable_data_ptr<float>());
}

void gradient(std::vector<Tensor> logits, Tensor scale, std::vector<int64_t> plan, Tensor student,
              double factor, Tensor log_sums, Tensor of_rows) {
  check(logits, scale, student);
  const Tensor& first = logits[0];
  const int64_t n_rows = count_rows(first);
  check_numbers(kName, "log_sums", log_sums, first, 2 * n_rows, ScalarType::Float);
  check_numbers(kName, "of_rows", of_rows, first, n_rows, ScalarType::Float);
  if (first.numel() == 0) return;
  const Plan launch(kName, plan, first);
  const OnDeviceOf device(first);
  with_type_of(kName, first, [&](auto in) {
    using In = decltype(in);
    const Student<In> to{static_cast<In*>(student.mutable_data_ptr()), student.stride(0),
                         static_cast<float>(factor)};
    device.launch(divergence_gradient_kernel<In>, launch.grid, launch.block,
                  experts_of<In>(kName, logits, scale), launch.cut, to,
                  log_sums.const_data_ptr<float>(), of_rows.const_data_ptr<float>());
  });
}

}  // namespace
}  // namespace fastgrow::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(fastgrow_cuda, m) {
  m.def(
      "logit_kl_out(Tensor[] logits, Tensor scale, int[] plan, Tensor(a!) parts, Tensor student, "
      "float factor, Tensor(b!) losses, Tensor(c!) log_sums) -> ()");
  m.def(
      "logit_kl_gradient_(Tensor[] logits, Tensor scale, int[] plan, Tensor(a!) student, "
      "float factor, Tensor log_sums, Tensor of_rows) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgrow_cuda, FASTGROW_DEVICE, m) {
  m.impl("logit_kl_out", TORCH_BOX(&fastgrow::cuda::logit_kl));
  m.impl("logit_kl_gradient_", TORCH_BOX(&fastgrow::cuda::gradient));
}
