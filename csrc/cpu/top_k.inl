#include "mean_block.inl"

// Offers the averaged columns [begin, end) of a row.
template <class In>
FASTGROW_TARGET void offer_columns(const Row<In>& row, int64_t begin, int64_t end,
                                   Largest<Accumulator<In>>& largest) {
  using Acc = Accumulator<In>;
  constexpr int width = Vector<Acc>::width;
  Block<Acc> block;
  for (int64_t column = begin; column < end; column += kBlock) {
    const int64_t n = std::min(kBlock, end - column);
    mean_block(row, column, n, block);
    for (int64_t i = 0; i < n; i += width) {
      // After some columns, hardly any vector contains one of the k largest.
      if (largest.is_full() && !any_above(load<Acc>(block.value + i), largest.bound())) continue;
      for (int64_t j = i; j < std::min(i + width, n); ++j) {
        largest.offer({block.value[j], column + j});
      }
    }
  }
}
