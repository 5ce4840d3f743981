#include "mean_block.inl"

// scale[k] * logits[k][i] + offset[k]. With a factor of zero, which is an infinite temperature, all
// columns are equal, for all logits.
template <class In>
FASTGROW_TARGET inline Vector<Accumulator<In>> term_of(const Row<In>& row, int64_t k, int64_t i,
                                                       Accumulator<In> offset) {
  using Acc = Accumulator<In>;
  if (row.weights[k] == 0) return broadcast(offset);
  return multiply_add(broadcast(row.weights[k]), load<Acc>(row.logits[k] + i), broadcast(offset));
}

// log of sum over k of sign[k] * exp(scale[k] * logits[k][i] + offset[k]), for columns [begin, end).
// The largest term is factored out, so that nothing underflows.
template <class In, class Out>
FASTGROW_TARGET void log_mixture(const Row<In>& row, const Accumulator<In>* offset,
                                 const Accumulator<In>* sign, Out* out, int64_t begin,
                                 int64_t end) {
  using Acc = Accumulator<In>;
  constexpr int width = Vector<Acc>::width;
  const Acc lowest = std::numeric_limits<Acc>::lowest();
  int64_t i = begin;
  for (; i + width <= end; i += width) {
    // If every term is zero, subtracting -inf would give NaN.
    Vector<Acc> top = broadcast(lowest);
    for (int64_t k = 0; k < row.n_experts; ++k) {
      top = maximum(term_of(row, k, i, offset[k]), top);
    }
    const Vector<Acc> minus_top = multiply(broadcast(Acc{-1}), top);
    Vector<Acc> sum = broadcast(Acc{0});
    for (int64_t k = 0; k < row.n_experts; ++k) {
      const Vector<Acc> term = term_of(row, k, i, offset[k]);
      sum = multiply_add(broadcast(sign[k]), exponential(add(term, minus_top)), sum);
    }
    store<false>(out + i, add(logarithm(sum), top));
  }
  for (; i < end; ++i) {
    std::array<Acc, kMaxExperts> term;
    Acc top = lowest;
    for (int64_t k = 0; k < row.n_experts; ++k) {
      const Acc x = row.weights[k] == 0 ? Acc{0} : static_cast<Acc>(row.logits[k][i]);
      term[k] = multiply_add(row.weights[k], x, offset[k]);
      if (term[k] > top) top = term[k];
    }
    Acc sum = 0;
    for (int64_t k = 0; k < row.n_experts; ++k) sum += sign[k] * std::exp(term[k] - top);
    out[i] = static_cast<Out>(std::log(sum) + top);
  }
}
