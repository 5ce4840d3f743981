// K logit tensors as arguments of a kernel: base pointers and row strides by value, factors in device
// memory. Nothing is stacked, and the host does not wait for the device.
#pragma once

#include <cstdint>
#include <type_traits>

#include "device.h"

namespace fastgrow::cuda {

constexpr int kMaxExperts = 64;
constexpr int kMaxThreads = 256;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffff;
constexpr int kPackBytes = 16;  // bytes that a thread loads at once

// The number of logits in one load.
template <class In>
constexpr int kPack = kPackBytes / static_cast<int>(sizeof(In));

// The offsets of a tensor's rows, in elements: rows have one spacing within groups of `n_inner` rows and
// the groups have another one, as in logits[:, :-1].
struct Rows {
  int64_t n_inner;
  int64_t inner;
  int64_t outer;

  __device__ int64_t operator()(int64_t row) const {
    return n_inner == 1 ? row * outer : row / n_inner * outer + row % n_inner * inner;
  }
};

template <class In>
struct Experts {
  const In* logits[kMaxExperts];
  Rows rows[kMaxExperts];
  const float* scale;  // [K], or [N, K] where `has_row_factors`
  int64_t n_rows;
  int64_t n_columns;
  int n_experts;
  bool has_row_factors;

  __device__ const float* scale_of(int64_t row) const {
    return scale + (has_row_factors ? row * n_experts : 0);
  }
};

// How rows are divided, as computed by fastgrow/ops/core/launch_plan.py.
struct Cut {
  int64_t length;  // columns of a part, a multiple of a pack
  int64_t n_parts;
  bool by_warps;  // each warp processes a whole row, and a row is one part
};

// The threads that work on a row: a block, or one of its warps. gridDim.x counts the parts of a row;
// more rows follow at gridDim.y times the rows of a block.
struct Team {
  int rank;
  int size;
  int of_block;
  int teams;

  __device__ explicit Team(bool by_warps)
      : rank(by_warps ? threadIdx.x % kWarp : threadIdx.x),
        size(by_warps ? kWarp : blockDim.x),
        of_block(by_warps ? threadIdx.x / kWarp : 0),
        teams(by_warps ? blockDim.x / kWarp : 1) {}

  __device__ void sync() const { teams == 1 ? __syncthreads() : __syncwarp(); }
  __device__ int64_t first_row() const { return int64_t{blockIdx.y} * teams + of_block; }
  __device__ int64_t next_row() const { return int64_t{gridDim.y} * teams; }
};

// The experts that take part in a row, their factors and their indices in the list of experts.
template <class In>
struct Row {
  const In* logits[kMaxExperts];
  float weights[kMaxExperts];
  int places[kMaxExperts];
  int n_experts;
  // The first column at which the rows of all experts are 16-byte aligned; -1 if there is none.
  int head;
};

// The number of columns before the first one that is 16-byte aligned.
template <class T>
__device__ int columns_to_alignment(const T* p) {
  const auto beyond = static_cast<unsigned>(reinterpret_cast<uintptr_t>(p) % kPackBytes);
  return static_cast<int>((kPackBytes - beyond) % kPackBytes / sizeof(T));
}

// Fills a row in the team's shared memory. An expert with a factor of zero is left out instead of
// multiplied by zero, so its infinities and NaN have no effect. `shares`, if given, are K numbers that
// are compared with zero instead of the factors; `only`, unless it is -1, is the only expert to read.
template <class In>
__device__ void read_row(const Experts<In>& experts, int64_t index, const Team& team, Row<In>& row,
                         const float* shares = nullptr, int only = -1) {
  team.sync();
  if (team.rank < kWarp) {
    const float* scale = experts.scale_of(index);
    int n = 0;
    int head = 0;
    for (int base = 0; base < experts.n_experts; base += kWarp) {
      const int k = base + team.rank;
      const bool is_present = k < experts.n_experts && (shares ? shares : scale)[k] != 0 &&
                              (only == -1 || only == k);
      const unsigned present = __ballot_sync(kAllLanes, is_present);
      const In* logits = nullptr;
      if (is_present) {
        const int place = n + __popc(present & ((1u << team.rank) - 1));
        logits = experts.logits[k] + experts.rows[k](index);
        row.logits[place] = logits;
        row.weights[place] = scale[k];
        row.places[place] = k;
      }
      const int own = columns_to_alignment(logits);
      if (n == 0 && present != 0) head = __shfl_sync(kAllLanes, own, __ffs(present) - 1);
      if (__ballot_sync(kAllLanes, is_present && own != head) != 0) head = -1;
      n += __popc(present);
    }
    if (team.rank == 0) {
      row.n_experts = n;
      row.head = head;
    }
  }
  team.sync();
}

// `size` adjacent elements, loaded and stored at once if they are aligned.
template <class T, int size>
struct alignas(sizeof(T) * size < kPackBytes ? sizeof(T) * size : kPackBytes) Pack {
  T element[size];
};

// Whether memory at `p` is aligned at the same columns as a row's logits.
template <class In, class T>
__device__ bool goes_with(const Row<In>& row, const T* p) {
  return reinterpret_cast<uintptr_t>(p + row.head) % alignof(Pack<T, kPack<In>>) == 0;
}

// With `once` an element is read only once, so the load does not displace anything in the caches.
// Elements that are read again must not be written by the same kernel. The pointers are in shared memory,
// so for ordinary loads the compiler could not infer that they point to global memory.
template <class T, int size, bool once = true>
__device__ Pack<T, size> load(const T* p) {
  Pack<T, size> pack;
  if constexpr (sizeof(pack) == sizeof(int4)) {
    const int4* from = reinterpret_cast<const int4*>(p);
    const int4 bits = once ? __ldcs(from) : __ldg(from);
    memcpy(&pack, &bits, sizeof(pack));
  } else {
    static_assert(size == 1);
    pack.element[0] = *p;
  }
  return pack;
}

template <class T, int size>
__device__ void store(T* p, const float (&x)[size]) {
  Pack<T, size> pack;
#pragma unroll
  for (int i = 0; i < size; ++i) pack.element[i] = static_cast<T>(x[i]);
  if constexpr (sizeof(pack) % sizeof(int4) == 0) {
    int4 bits[sizeof(pack) / sizeof(int4)];
    memcpy(bits, &pack, sizeof(pack));
    for (int i = 0; i < static_cast<int>(sizeof(pack) / sizeof(int4)); ++i) {
      __stwb(reinterpret_cast<int4*>(p) + i, bits[i]);
    }
  } else {
    *reinterpret_cast<Pack<T, size>*>(p) = pack;
  }
}

// Calls f(Count, first) for the experts of a row, up to four at a time, so that their loads are in
// flight together.
template <class F>
__device__ void for_each_four(int n_experts, const F& f) {
  int k = 0;
  // Unrolled, it would need more registers than there are.
#pragma unroll 1
  for (; k + 4 <= n_experts; k += 4) f(std::integral_constant<int, 4>{}, k);
  if (n_experts - k == 3) f(std::integral_constant<int, 3>{}, k);
  if (n_experts - k == 2) f(std::integral_constant<int, 2>{}, k);
  if (n_experts - k == 1) f(std::integral_constant<int, 1>{}, k);
}

// The columns of a row that a thread processes at a time.
template <int size_, int n_>
struct Visit {
  static constexpr int size = size_;  // adjacent columns
  static constexpr int n = n_;        // groups of them at most, `step` columns apart
  int64_t column;
  int64_t step;
  int n_valid;  // number of groups; 0 for threads without any

  // The offset of group u; for missing groups that of the first one, so that loads need no branch.
  __device__ int64_t offset(int u) const { return column + (u < n_valid ? u * step : 0); }
};

// The means of the columns of a nonempty visit.
template <bool once = true, class In, class V>
__device__ void mean_packs(const Row<In>& row, const V& visit, float (&sum)[V::n][V::size]) {
#pragma unroll
  for (int u = 0; u < V::n; ++u) {
#pragma unroll
    for (int i = 0; i < V::size; ++i) sum[u][i] = 0;
  }
  for_each_four(row.n_experts, [&](auto some, int first) {
    constexpr int count = decltype(some)::value;
    Pack<In, V::size> pack[count][V::n];
#pragma unroll
    for (int k = 0; k < count; ++k) {
#pragma unroll
      for (int u = 0; u < V::n; ++u) {
        pack[k][u] = load<In, V::size, once>(row.logits[first + k] + visit.offset(u));
      }
    }
#pragma unroll
    for (int k = 0; k < count; ++k) {
      const float weight = row.weights[first + k];
#pragma unroll
      for (int u = 0; u < V::n; ++u) {
#pragma unroll
        for (int i = 0; i < V::size; ++i) {
          sum[u][i] = fmaf(weight, static_cast<float>(pack[k][u].element[i]), sum[u][i]);
        }
      }
    }
  });
}

// A range of columns of a row: [first, last) is processed in packs, the columns before and after one by
// one.
struct Span {
  int64_t begin, first, last, end;

  // The span of a part of a row. `in_packs`: all other memory is aligned at the same columns as logits.
  template <class In>
  __device__ Span(const Row<In>& row, int64_t begin, int64_t end, bool in_packs = true)
      : begin(begin), first(end), last(end), end(end) {
    if (!in_packs || row.head < 0 || begin + row.head > end) return;
    first = begin + row.head;
    last = first + (end - first) / kPack<In> * kPack<In>;
  }
};

// Calls visit(Visit) for all columns of a span, equally often in all threads of the team, with up to `n`
// packs at a time or four single columns at a time.
template <class In, int n, class F>
__device__ void for_each_column(const Team& team, const Span& span, const F& visit) {
  const auto visit_all = [&](auto kind, int64_t begin, int64_t end) {
    using V = decltype(kind);
    const int64_t step = int64_t{team.size} * V::size;
    for (int64_t base = begin; base < end; base += V::n * step) {
      V next{base + team.rank * V::size, step, 0};
#pragma unroll
      for (int u = 0; u < V::n; ++u) next.n_valid += next.column + u * step < end;
      visit(next);
    }
  };
  // One loop, so that the code for single columns is generated once.
#pragma unroll 1
  for (int side = 0; side < 2; ++side) {
    visit_all(Visit<1, 4>{}, side == 0 ? span.begin : span.last, side == 0 ? span.first : span.end);
  }
  visit_all(Visit<kPack<In>, n>{}, span.first, span.last);
}

}  // namespace fastgrow::cuda
