#include "mean_block.inl"

// The masses of the blocks of columns [begin, end).
template <class In>
FASTGROW_TARGET void block_masses(const Row<In>& row, int64_t begin, int64_t end, Mass* masses) {
  Block<Accumulator<In>> block;
  for (int64_t column = begin; column < end; column += kBlock) {
    const int64_t n = std::min(kBlock, end - column);
    *masses++ = block_mass(row, column, n, end, block);
  }
}

// The first of the columns [column, column + n) where the running sum of exp(logit - shift) exceeds
// `wanted`. If there is none, because of rounding, the last column with a nonzero term.
template <class In>
FASTGROW_TARGET int64_t column_of_mass(const Row<In>& row, int64_t column, int64_t n, double shift,
                                       double wanted) {
  using Acc = Accumulator<In>;
  Block<Acc> block;
  mean_block(row, column, n, block);
  const Vector<Acc> minus_shift = broadcast(static_cast<Acc>(-shift));
  for (int64_t i = 0; i < padded(n); i += Vector<Acc>::width) {
    store<false>(block.value + i, exponential(add(load<Acc>(block.value + i), minus_shift)));
  }
  double sum = 0;
  int64_t last = 0;
  for (int64_t i = 0; i < n; ++i) {
    sum += block.value[i];
    if (block.value[i] > 0) last = i;
    if (sum > wanted) return column + i;
  }
  return column + last;
}
