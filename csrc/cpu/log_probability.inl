#include "mean_block.inl"

template <class In>
FASTGROW_TARGET Accumulator<In> mean_at(const Row<In>& row, int64_t column) {
  if (row.n_experts == 0) return 0;
  return mean_one(row.logits.data(), row.weights.data(), row.n_experts, column);
}

// Replaces logits by -gradient * softmax.
template <class Acc>
FASTGROW_TARGET inline void softmax_gradient(Block<Acc>& block, int64_t n, Acc log_sum,
                                             Acc gradient) {
  const Vector<Acc> shift = broadcast(-log_sum);
  const Vector<Acc> factor = broadcast(-gradient);
  for (int64_t i = 0; i < padded(n); i += Vector<Acc>::width) {
    const Vector<Acc> x = add(load<Acc>(block.value + i), shift);
    store<false>(block.value + i, multiply(factor, exponential(x)));
  }
}

template <class Acc, class In>
FASTGROW_TARGET inline double dot(const Acc* a, const In* b, int64_t n) {
  constexpr int width = Vector<Acc>::width;
  Vector<Acc> sum[2] = {broadcast(Acc{0}), broadcast(Acc{0})};
  int64_t i = 0;
  for (; i + 2 * width <= n; i += 2 * width) {
    for (int u = 0; u < 2; ++u) {
      sum[u] = multiply_add(load<Acc>(a + i + u * width), load<Acc>(b + i + u * width), sum[u]);
    }
  }
  double total = sum_of_lanes(add(sum[0], sum[1]));
  for (; i < n; ++i) total += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return total;
}

// Writes columns [begin, end) of the gradients of gradient * log p(target), see RowGradients.
template <bool stream, class In>
FASTGROW_TARGET void log_probability_backward(const Row<In>& row, int64_t begin, int64_t end,
                                              const RowGradients<In>& to) {
  Block<Accumulator<In>> block;
  for (int64_t column = begin; column < end; column += kBlock) {
    const int64_t n = std::min(kBlock, end - column);
    mean_block(row, column, n, block);
    softmax_gradient(block, n, to.log_sum, to.gradient);
    if (to.target >= column && to.target < column + n) {
      block.value[to.target - column] += to.gradient;
    }
    const Accumulator<In>* from = block.value;
    for (int64_t k = 0; k < row.n_experts; ++k) {
      In* logits = to.logits[row.places[k]];
      if (logits != nullptr) mean_span<stream, stream>(&from, &row.weights[k], 1, logits + column, n);
      if (to.scale != nullptr) to.scale[row.places[k]] += dot(from, row.logits[k] + column, n);
    }
  }
}
