// A block of averaged logits in the first-level cache and the reductions over it, so that nothing of
// the vocabulary's size is written to memory. Included once per instruction set.

#include "mean_span.inl"
#include "vector_math.inl"

template <class Acc>
struct alignas(64) Block {
  Acc value[kBlock];
};

constexpr int64_t padded(int64_t n) {
  return (n + kVectorMultiple - 1) / kVectorMultiple * kVectorMultiple;
}

// The mean of columns [column, column + n) of a row, n <= kBlock, padded with -inf.
template <class In, class Acc>
FASTGROW_TARGET inline void mean_block(const Row<In>& row, int64_t column, int64_t n,
                                       Block<Acc>& block) {
  std::array<const In*, kMaxExperts> from;
  for (int64_t k = 0; k < row.n_experts; ++k) from[k] = row.logits[k] + column;
  mean_span<false, false>(from.data(), row.weights.data(), row.n_experts, block.value, n);
  std::fill(block.value + n, block.value + padded(n), -std::numeric_limits<Acc>::infinity());
}

// The largest value of a block, ignoring NaN.
template <class Acc>
FASTGROW_TARGET inline Acc largest(const Block<Acc>& block, int64_t n) {
  constexpr int width = Vector<Acc>::width;
  constexpr int unroll = 4;
  Vector<Acc> top[unroll];
  for (auto& t : top) t = broadcast(-std::numeric_limits<Acc>::infinity());
  for (int64_t i = 0; i < padded(n); i += unroll * width) {
    for (int u = 0; u < unroll; ++u) {
      top[u] = maximum(load<Acc>(block.value + i + u * width), top[u]);
    }
  }
  return largest_lane(maximum(maximum(top[0], top[1]), maximum(top[2], top[3])));
}

// The sum of exp(x - shift) over a block. The block is short enough for sums in `Acc`. During the
// arithmetic the row's `n_ahead` columns from `ahead` on are prefetched.
template <class In, class Acc>
FASTGROW_TARGET inline double sum_exponentials(const Block<Acc>& block, int64_t n, Acc shift,
                                               const Row<In>& row, int64_t ahead,
                                               int64_t n_ahead) {
  constexpr int width = Vector<Acc>::width;
  constexpr int unroll = 4;
  constexpr int64_t cache_line = 64 / sizeof(In);
  Vector<Acc> sum[unroll];
  for (auto& s : sum) s = broadcast(Acc{0});
  const Vector<Acc> minus_shift = broadcast(-shift);
  for (int64_t i = 0; i < padded(n); i += unroll * width) {
    for (int64_t j = i; j < std::min<int64_t>(i + unroll * width, n_ahead); j += cache_line) {
      for (int64_t k = 0; k < row.n_experts; ++k) {
        __builtin_prefetch(row.logits[k] + ahead + j, 0, 3);
      }
    }
    for (int u = 0; u < unroll; ++u) {
      const Vector<Acc> x = load<Acc>(block.value + i + u * width);
      sum[u] = add(sum[u], exponential(add(x, minus_shift)));
    }
  }
  return sum_of_lanes(add(add(sum[0], sum[1]), add(sum[2], sum[3])));
}

// The mass of columns [column, column + n) of a row. Columns up to `end` will be read afterwards.
template <class In>
FASTGROW_TARGET inline Mass block_mass(const Row<In>& row, int64_t column, int64_t n, int64_t end,
                                       Block<Accumulator<In>>& block) {
  mean_block(row, column, n, block);
  Mass mass{largest(block, n), 0};
  const auto shift = static_cast<Accumulator<In>>(mass.shift());
  mass.sum = sum_exponentials(block, n, shift, row, column + n, end - (column + n));
  return mass;
}

// The mass of columns [begin, end) of a row.
template <class In>
FASTGROW_TARGET Mass mass_of(const Row<In>& row, int64_t begin, int64_t end) {
  Block<Accumulator<In>> block;
  Mass mass;
  for (int64_t column = begin; column < end; column += kBlock) {
    mass.add(block_mass(row, column, std::min(kBlock, end - column), end, block));
  }
  return mass;
}
