// The k largest of the columns that are offered to a block, k <= 64.
//
// Columns that may be among them are written to a buffer. When it is full it is sorted and cut to k, and
// the k-th becomes the bound that later columns have to reach. If more columns are offered than fit the
// buffer, the block finds a bound first: the k-th largest of the threads' largest columns, because at
// least k columns reach it.
#pragma once

#include <cstdint>

#include "reductions.cuh"

namespace fastgrow::cuda {

constexpr int kMaxTopK = 64;
constexpr int kOffered = 8;  // columns that a thread offers at a time
// Columns are int, including the indices beyond the last column that a block may compute.
constexpr int64_t kMaxColumns = INT32_MAX - kMaxThreads * kOffered;
// Capacity for the columns at the bound, up to kOffered of each of k threads, and for earlier ones.
constexpr int kBuffer = 1024;
static_assert(kMaxTopK * (kOffered + 1) <= kBuffer);

// Sorts n (a power of two) in shared memory; called by all threads of a block.
__device__ inline void sort(Candidate* all, int n) {
  __syncthreads();
  for (int size = 2; size <= n; size *= 2) {
    for (int step = size / 2; step > 0; step /= 2) {
      for (int i = threadIdx.x; i < n / 2; i += blockDim.x) {
        const int low = i / step * 2 * step + i % step;
        const int high = low + step;
        const bool ascends = (low & size) == 0;
        if (all[high].is_before(all[low]) == ascends) {
          const Candidate other = all[low];
          all[low] = all[high];
          all[high] = other;
        }
      }
      __syncthreads();
    }
  }
}

// The set of a block; all its threads call the methods, with the same k.
class Largest {
 public:
  __device__ explicit Largest(int k) : k_(k), state_(shared<State>()) { clear(); }

  __device__ void clear() {
    __syncthreads();
    count_ = 0;
    if (threadIdx.x == 0) state_.count = 0;
    bound_ = Candidate::none();
    __syncthreads();
  }

  // Offers adjacent columns of this thread, of which the first `n_valid` exist.
  template <int size>
  __device__ void offer(const float (&x)[size], int64_t column, int n_valid) {
    static_assert(size <= kOffered);
    const auto candidate = [&](int i) { return Candidate{x[i], static_cast<int>(column) + i}; };
    const auto wanted = [&] {
      unsigned places = 0;
#pragma unroll
      for (int i = 0; i < size; ++i) {
        if (i < n_valid && !bound_.is_before(candidate(i))) places |= 1u << i;
      }
      return places;
    };
    unsigned places = wanted();
    int total = count_of_block(__popc(places));
    if (total == 0) return;
    if (count_ + total > kBuffer) {
      cut();
      places = wanted();
      total = count_of_block(__popc(places));
    }
    if (count_ + total > kBuffer) {
      Candidate best = Candidate::none();
#pragma unroll
      for (int i = 0; i < size; ++i) {
        if (places >> i & 1) best.add(candidate(i));
      }
      state_.of_threads[threadIdx.x] = best;
      sort(state_.of_threads, kMaxThreads);
      bound_ = state_.of_threads[k_ - 1];
      places = wanted();
      total = count_of_block(__popc(places));
    }
#pragma unroll
    for (int i = 0; i < size; ++i) {
      // The order does not matter: the buffer is sorted before it is read.
      if (places >> i & 1) state_.buffer[atomicAdd(&state_.count, 1)] = candidate(i);
    }
    count_ += total;
    __syncthreads();
  }

  // Sorts the buffer and removes all but the k largest, which are then at its beginning, followed by
  // `none()`.
  __device__ const Candidate* cut() {
    int n = 2;
    while (n < count_ || n < k_) n *= 2;
    for (int i = count_ + threadIdx.x; i < n; i += blockDim.x) state_.buffer[i] = Candidate::none();
    sort(state_.buffer, n);
    count_ = min(count_, k_);
    if (threadIdx.x == 0) state_.count = count_;
    bound_ = state_.buffer[k_ - 1];
    __syncthreads();
    return state_.buffer;
  }

 private:
  struct State {
    Candidate buffer[kBuffer];
    Candidate of_threads[kMaxThreads];
    int count;  // count_, while threads add columns
    int of_warps[kMaxThreads / kWarp];
  };

  __device__ int count_of_block(int count) {
    for (int step = kWarp / 2; step > 0; step /= 2) {
      count += __shfl_xor_sync(kAllLanes, count, step);
    }
    __syncthreads();  // The values of the previous call may still be read.
    if (threadIdx.x % kWarp == 0) state_.of_warps[threadIdx.x / kWarp] = count;
    __syncthreads();
    int total = 0;
    for (int warp = 0; warp < kMaxThreads / kWarp; ++warp) total += state_.of_warps[warp];
    return total;
  }

  int k_;
  int count_ = 0;
  Candidate bound_;
  State& state_;
};

// Offers the results of a row's parts: k each, filled with `none()` if a part had fewer.
__device__ inline void offer_parts(Largest& largest, const Candidate* parts, int64_t n) {
  for (int64_t base = 0; base < n; base += blockDim.x) {
    const int64_t i = base + threadIdx.x;
    const Candidate candidate = i < n ? parts[i] : Candidate::none();
    const float value[1] = {candidate.value};
    largest.offer(value, candidate.column, candidate.column == INT32_MAX ? 0 : 1);
  }
}

// Writes the k largest of each part of each row to `parts`, [N, parts, k], and, if `with_mass`, the
// part's mass to `masses`, [N, parts].
template <bool with_mass, class In>
__global__ void __launch_bounds__(kMaxThreads, 3)
    part_largest_kernel(const __grid_constant__ Experts<In> experts, Cut cut, int k,
                        Candidate* parts, Mass* masses) {
  const Team team(false);
  Row<In>& row = shared<Row<In>>();
  const int64_t begin = blockIdx.x * cut.length;
  const int64_t end = min(begin + cut.length, experts.n_columns);
  Largest largest(k);
  for (int64_t index = team.first_row(); index < experts.n_rows; index += team.next_row()) {
    read_row(experts, index, team, row);
    largest.clear();
    Mass mass = Mass::none();
    for_each_column<In, kOffered / kPack<In>>(team, Span(row, begin, end), [&](auto visit) {
      using V = decltype(visit);
      float x[V::n][V::size];
      if (visit.n_valid > 0) mean_packs(row, visit, x);
#pragma unroll
      for (int u = 0; u < V::n; ++u) {
        const int64_t column = visit.column + u * visit.step;
        if (with_mass && u < visit.n_valid) mass.add(x[u], column);
        largest.offer(x[u], column, u < visit.n_valid ? V::size : 0);
      }
    });
    const Candidate* best = largest.cut();
    const int64_t part = index * cut.n_parts + blockIdx.x;
    for (int i = threadIdx.x; i < k; i += blockDim.x) parts[part * k + i] = best[i];
    if constexpr (with_mass) {
      mass = of_team(mass, team);
      if (threadIdx.x == 0) masses[part] = mass;
    }
  }
}

}  // namespace fastgrow::cuda
