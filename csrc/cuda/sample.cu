// One sample per row from the softmax of averaged logits, by inverting the distribution function: in the
// order of the columns, or in order of decreasing probability if the distribution is restricted to its
// most likely columns. The uniform numbers are the same as on a CPU.

#include <cmath>
#include <cstdint>
#include <vector>

#include "../philox.h"
#include "parts.h"
#include "top_k.cuh"

namespace fastgrow::cuda {
namespace {

constexpr const char* kName = "mean_sample";

__global__ void __launch_bounds__(kMaxThreads)
    philox_kernel(int64_t seed, int64_t step, int64_t n, double* out) {
  const int64_t row = int64_t{blockIdx.x} * kMaxThreads + threadIdx.x;
  if (row < n) out[row] = philox_uniform(seed, step, row);
}

struct Top {
  float value;

  __device__ void add(const Top& other) { value = fmaxf(value, other.value); }
  __device__ Top of_lane(int offset) const { return {__shfl_xor_sync(kAllLanes, value, offset)}; }
};

constexpr int kEach = 8;  // adjacent indices of a thread

struct Sums {
  double value[4];

  __device__ void add(const Sums& other) {
    for (int i = 0; i < 4; ++i) value[i] += other.value[i];
  }
  __device__ Sums of_lane(int offset) const {
    Sums other;
    for (int i = 0; i < 4; ++i) other.value[i] = __shfl_xor_sync(kAllLanes, value[i], offset);
    return other;
  }
};

struct Found {
  int index;
  double rest;  // the wanted sum minus the weights of the indices before
};

// The first of n indices where the running sum of weights exceeds `wanted`. If there is none, because of
// rounding, the last index with a nonzero weight, and all of `wanted`. `fill(first, weights)` writes the
// weights of kEach indices from `first` on, zero beyond n. Called by all threads of a block.
template <class Fill>
__device__ Found find(int n, double wanted, const Fill& fill) {
  struct State {
    double of_warps[kMaxThreads / kWarp];
    double rest;
    int index, last;
  };
  State& state = shared<State>();
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  __syncthreads();
  if (threadIdx.x == 0) {
    state.index = INT32_MAX;
    state.last = 0;
  }
  int last = 0;
  double before = 0;
  for (int base = 0; base < n; base += blockDim.x * kEach) {
    const int first = base + threadIdx.x * kEach;
    double weights[kEach] = {};
    if (first < n) fill(first, weights);
    double sum = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (weights[i] > 0) last = first + i;
      sum += weights[i];
    }
    for (int step = 1; step < kWarp; step *= 2) {
      const double other = __shfl_up_sync(kAllLanes, sum, step);
      if (lane >= step) sum += other;
    }
    double begin = __shfl_up_sync(kAllLanes, sum, 1);
    if (lane == 0) begin = 0;
    __syncthreads();
    if (lane == kWarp - 1) state.of_warps[warp] = sum;
    __syncthreads();
    double of_warp = before;
    for (int w = 0; w < static_cast<int>(blockDim.x) / kWarp; ++w) {
      if (w == warp) of_warp = before;
      before += state.of_warps[w];
    }
    begin += of_warp;
    int found = INT32_MAX;
    double rest = 0;
    if (begin <= wanted && wanted < sum + of_warp) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (begin <= wanted && weights[i] > 0) {
          found = first + i;
          rest = wanted - begin;
        }
        begin += weights[i];
      }
      atomicMin(&state.index, found);
    }
    __syncthreads();
    if (found != INT32_MAX && found == state.index) state.rest = rest;
    __syncthreads();
    if (state.index != INT32_MAX) return {state.index, state.rest};
  }
  atomicMax(&state.last, last);
  __syncthreads();
  return {state.last, wanted};
}

// The averages of up to kEach columns from `column` on; values from `end` on are not written.
template <class In>
__device__ void means_from(const Row<In>& row, int64_t column, int64_t end, float (&mean)[kEach]) {
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (column + i < end) mean[i] = 0;
  }
  for (int place = 0; place < row.n_experts; ++place) {
    const In* logits = row.logits[place] + column;
    const float weight = row.weights[place];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (column + i < end) mean[i] = fmaf(weight, static_cast<float>(logits[i]), mean[i]);
    }
  }
}

// The sum of a row's parts, relative to `shift`. Called by all threads of a block.
__device__ double mass_of_parts(const Mass* parts, int64_t n_parts, float shift, const Team& team) {
  Sum sum{0};
  for (int64_t i = threadIdx.x; i < n_parts; i += blockDim.x) sum.value += parts[i].relative_to(shift);
  return of_team(sum, team).value;
}

// Samples in the order of the columns. A row without a distribution (NaN, +inf, or only -inf) gives -1.
template <class In>
__global__ void __launch_bounds__(kMaxThreads)
    draw_kernel(const __grid_constant__ Experts<In> experts, Cut cut, const Mass* parts,
                const double* uniforms, int64_t* columns) {
  const Team team(false);
  Row<In>& row = shared<Row<In>>();
  for (int64_t index = blockIdx.x; index < experts.n_rows; index += gridDim.x) {
    read_row(experts, index, team, row);
    const Mass* masses = parts + index * cut.n_parts;
    Top top{-INFINITY};
    for (int64_t i = threadIdx.x; i < cut.n_parts; i += blockDim.x) top.add(Top{masses[i].top});
    const float shift = Mass{of_team(top, team).value, 0}.shift();
    const double total = mass_of_parts(masses, cut.n_parts, shift, team);
    int64_t column = -1;
    if (total > 0) {
      const auto of_parts = [&](int first, double(&weights)[kEach]) {
        for (int i = 0; i < kEach && first + i < cut.n_parts; ++i) {
          const double mass = masses[first + i].relative_to(shift);
          // Too small for any uniform number but 0; the masses of its columns would be 0 in float.
          weights[i] = mass < 0x1p-53 * total ? 0 : mass;
        }
      };
      const Found part =
          find(static_cast<int>(cut.n_parts), uniforms[index] * total, of_parts);
      const int64_t begin = part.index * cut.length;
      const int64_t end = min(begin + cut.length, experts.n_columns);
      const auto of_columns = [&](int first, double(&weights)[kEach]) {
        float x[kEach];
#pragma unroll
        for (int i = 0; i < kEach; ++i) x[i] = -INFINITY;
        means_from(row, begin + first, end, x);
#pragma unroll
        for (int i = 0; i < kEach; ++i) weights[i] = exponential(x[i] - shift);
      };
      const Found found = find(static_cast<int>(end - begin), part.rest, of_columns);
      column = begin + found.index;
    }
    if (threadIdx.x == 0) columns[index] = column;
  }
}

// An integer key with the order of floats; -0 and 0, which are equal, have the same key.
__device__ unsigned key_of(float x) {
  const unsigned bits = __float_as_uint(x == 0 ? 0.0f : x);
  return bits >> 31 ? ~bits : bits | 0x80000000;
}
__device__ float number_of(unsigned key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffff : ~key);
}

// A row's distribution in order of decreasing probability, for rows whose candidates do not suffice.
// Each query is a pass over the row. Used by all threads of a block.
template <class In>
class Falling {
 public:
  __device__ Falling(const Row<In>& row, int64_t n_columns, float top, const Team& team)
      : row_(row), n_columns_(static_cast<int>(n_columns)), top_(top), team_(team) {}

  // The column that `uniform` selects from the smallest set of most likely columns whose mass is at
  // least the share `top_p`.
  __device__ int draw(double uniform, double top_p) const {
    double share = top_p;
    double some = 0;  // number of columns of the set's last level
    Level level{};
    for (int search = 0; search < 2; ++search) {
      const unsigned end = level.key;
      level = level_at(share);
      if (search == 0) {
        // Of equally likely columns the first ones are taken.
        const double missing = (share * level.total - level.above) / level.each;
        some = fmin(fmax(ceil(missing), 1.0), level.count);
        share = uniform * (level.above + some * level.each) / level.total;
      } else if (level.key == end) {
        level.count = some;
      }
    }
    const double missing = (share * level.total - level.above) / level.each;
    const double place = fmin(fmax(floor(missing), 0.0), level.count - 1);
    const auto is_there = [&](int first, double(&weights)[kEach]) {
      float x[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) x[i] = NAN;
      means_from(row_, first, n_columns_, x);
#pragma unroll
      for (int i = 0; i < kEach; ++i) weights[i] = key_of(x[i]) == level.key;
    };
    return find(n_columns_, place, is_there).index;
  }

 private:
  // The columns with one value; `total` is the mass of all columns of the row.
  struct Level {
    unsigned key;
    double above;  // mass of the columns before them
    double each;   // mass of one column
    double count;
    double total;
  };

  // The level of the largest key for which columns at and above it have more than a share of the mass.
  // Finds two bits of the key at a time.
  __device__ Level level_at(double share) const {
    unsigned key = 0;
    double total = 0;
    double above = 0;  // mass above the remaining range of keys
    for (int shift = 30; shift >= 0; shift -= 2) {
      // Masses of the columns at and above four keys.
      float sum[4] = {};
      for_each([&](float x) {
        const unsigned place = key_of(x);
        const float mass = exponential(x - top_);
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) sum[i] += place >= key + (i << shift) ? mass : 0.0f;
      });
      const Sums all = of_team(Sums{{sum[0], sum[1], sum[2], sum[3]}}, team_);
      const double sums[5] = {all.value[0], all.value[1], all.value[2], all.value[3], above};
      if (shift == 30) total = sums[0];
      unsigned digit = 0;
      above = sums[1];
#pragma unroll
      for (unsigned i = 1; i < 4; ++i) {
        if (sums[i] > share * total) {
          digit = i;
          above = sums[i + 1];
        }
      }
      key += digit << shift;
    }
    Sum count{0};
    for_each([&](float x) { count.value += key_of(x) == key; });
    return {key, above, exponential(number_of(key) - top_), of_team(count, team_).value, total};
  }

  template <class F>
  __device__ void for_each(const F& f) const {
    for_each_column<In, 1>(team_, Span(row_, 0, n_columns_), [&](auto visit) {
      using V = decltype(visit);
      if (visit.n_valid == 0) return;
      float x[V::n][V::size];
      mean_packs<false>(row_, visit, x);
#pragma unroll
      for (int u = 0; u < V::n; ++u) {
#pragma unroll
        for (int i = 0; i < V::size; ++i) {
          if (u < visit.n_valid) f(x[u][i]);
        }
      }
    });
  }

  const Row<In>& row_;
  int n_columns_;
  float top_;
  const Team& team_;
};

// Samples from the k largest columns of each row (`is_cut`), or from the first of them that reach
// `top_p` of the whole mass. If they do not reach it, the row is searched.
template <class In>
__global__ void __launch_bounds__(kMaxThreads, 2)
    draw_largest_kernel(const __grid_constant__ Experts<In> experts, int64_t n_parts, int k,
                        bool is_cut, double top_p, const Candidate* parts, const Mass* masses,
                        const double* uniforms, int64_t* columns) {
  struct Drawn {
    double shares[kMaxTopK];
    int place;
  };
  const Team team(false);
  Row<In>& row = shared<Row<In>>();
  Drawn& drawn = shared<Drawn>();
  Largest largest(k);
  for (int64_t index = blockIdx.x; index < experts.n_rows; index += gridDim.x) {
    largest.clear();
    offer_parts(largest, parts + index * n_parts * k, n_parts * k);
    const Candidate* best = largest.cut();
    const float top = best[0].value;
    double total = mass_of_parts(masses + index * n_parts, n_parts, top, team);
    int64_t column = -1;
    // If the largest logit is infinite or NaN there is no distribution.
    if (fabsf(top) < INFINITY && total > 0) {
      if (static_cast<int>(threadIdx.x) < k) {
        drawn.shares[threadIdx.x] = exp(static_cast<double>(best[threadIdx.x].value - top));
      }
      __syncthreads();
      if (threadIdx.x == 0) {
        double sum = 0;
        for (int i = 0; i < k; ++i) sum += drawn.shares[i];
        if (is_cut || k == experts.n_columns) total = sum;
        const double enough = top_p * total;
        const bool suffices = sum >= enough || is_cut || k == experts.n_columns;
        double kept = 0;
        int n = 0;
        for (; n < k && kept < enough; ++n) kept += drawn.shares[n];
        double reached = drawn.shares[0];
        int place = 0;
        while (place + 1 < n && reached <= uniforms[index] * kept) {
          reached += drawn.shares[++place];
        }
        drawn.place = suffices ? place : -1;
      }
      __syncthreads();
      if (drawn.place >= 0) {
        column = best[drawn.place].column;
      } else {
        read_row(experts, index, team, row);
        column = Falling<In>(row, experts.n_columns, top, team).draw(uniforms[index], top_p);
      }
    }
    if (threadIdx.x == 0) columns[index] = column;
    __syncthreads();
  }
}

void check_rows(const std::vector<Tensor>& logits, const Tensor& scale, const Tensor& uniforms,
                const Tensor& columns) {
  check_experts(kName, logits, scale);
  const int64_t n_rows = count_rows(logits[0]);
  check_numbers(kName, "uniforms", uniforms, logits[0], n_rows, ScalarType::Double);
  check_numbers(kName, "columns", columns, logits[0], n_rows, ScalarType::Long);
  STD_TORCH_CHECK(count_columns(logits[0]) <= kMaxColumns, kName, ": rows may have at most ",
                  kMaxColumns, " columns");
}

// `parts` has 8 bytes for each row and part of a row.
void mean_sample(std::vector<Tensor> logits, Tensor scale, std::vector<int64_t> plan, Tensor parts,
                 Tensor uniforms, Tensor columns) {
  check_rows(logits, scale, uniforms, columns);
  const Tensor& first = logits[0];
  if (first.numel() == 0) return;
  const Plan launch(kName, plan, first);
  Mass* masses = launch.parts<Mass>(kName, parts, first);
  const OnDeviceOf device(first);
  leave_parts(kName, device, logits, scale, launch, masses);
  with_type_of(kName, first, [&](auto in) {
    using In = decltype(in);
    device.launch(draw_kernel<In>, launch.rows_grid, kMaxThreads,
                  experts_of<In>(kName, logits, scale), launch.cut, masses,
                  uniforms.const_data_ptr<double>(), columns.mutable_data_ptr<int64_t>());
  });
}

// `parts` has 8 bytes for each row, part of a row and one of the k, `masses` for each row and part.
// `is_cut`: sample from the k most likely columns only. Of these, or else of all columns, from the most
// likely ones that reach `top_p`.
void mean_sample_largest(std::vector<Tensor> logits, Tensor scale, std::vector<int64_t> plan,
                         Tensor parts, Tensor masses, Tensor uniforms, int64_t k, bool is_cut,
                         double top_p, Tensor columns) {
  check_rows(logits, scale, uniforms, columns);
  const Tensor& first = logits[0];
  STD_TORCH_CHECK(k >= 1 && k <= std::min<int64_t>(count_columns(first), kMaxTopK), kName,
                  ": k must be 1 to 64 and at most the number of columns, got ", k);
  if (first.numel() == 0) return;
  const Plan launch(kName, plan, first);
  STD_TORCH_CHECK(launch.block.x == kMaxThreads && !launch.cut.by_warps, kName,
                  ": the launch plan must have ", kMaxThreads, " threads per block and one row");
  Candidate* candidates = launch.parts<Candidate>(kName, parts, first, k);
  Mass* of_parts = launch.parts<Mass>(kName, masses, first);
  const OnDeviceOf device(first);
  with_type_of(kName, first, [&](auto in) {
    using In = decltype(in);
    const Experts<In> experts = experts_of<In>(kName, logits, scale);
    device.launch(part_largest_kernel<true, In>, launch.grid, launch.block, experts, launch.cut,
                  static_cast<int>(k), candidates, of_parts);
    device.launch(draw_largest_kernel<In>, launch.rows_grid, kMaxThreads, experts,
                  launch.cut.n_parts, static_cast<int>(k), is_cut, top_p, candidates, of_parts,
                  uniforms.const_data_ptr<double>(), columns.mutable_data_ptr<int64_t>());
  });
}

void fill_uniform(int64_t seed, int64_t step, Tensor out) {
  STD_TORCH_CHECK(is_on_device(out) && out.is_contiguous() &&
                      out.scalar_type() == ScalarType::Double,
                  "philox: out must be contiguous, float64");
  const int64_t n = out.numel();
  if (n == 0) return;
  const OnDeviceOf device(out);
  device.launch(philox_kernel, dim3(static_cast<unsigned>((n + kMaxThreads - 1) / kMaxThreads)),
                kMaxThreads, seed, step, n, out.mutable_data_ptr<double>());
}

}  // namespace
}  // namespace fastgrow::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(fastgrow_cuda, m) {
  m.def(
      "mean_sample_out(Tensor[] logits, Tensor scale, int[] plan, Tensor(a!) parts, "
      "Tensor uniforms, Tensor(b!) columns) -> ()");
  m.def(
      "mean_sample_largest_out(Tensor[] logits, Tensor scale, int[] plan, Tensor(a!) parts, "
      "Tensor(b!) masses, Tensor uniforms, int k, bool is_cut, float top_p, Tensor(c!) columns) "
      "-> ()");
  m.def("philox_uniform_(int seed, int step, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgrow_cuda, FASTGROW_DEVICE, m) {
  m.impl("mean_sample_out", TORCH_BOX(&fastgrow::cuda::mean_sample));
  m.impl("mean_sample_largest_out", TORCH_BOX(&fastgrow::cuda::mean_sample_largest));
  m.impl("philox_uniform_", TORCH_BOX(&fastgrow::cuda::fill_uniform));
}
