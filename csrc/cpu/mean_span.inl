// The weighted sum of some columns of a row. Included once per instruction set.

template <class Acc, class In>
FASTGROW_TARGET inline Acc mean_one(
    const In* const* experts, const Acc* weights, int64_t n_experts, int64_t i) {
  Acc sum = weights[0] * static_cast<Acc>(experts[0][i]);
  for (int64_t k = 1; k < n_experts; ++k) {
    sum = multiply_add(weights[k], static_cast<Acc>(experts[k][i]), sum);
  }
  return sum;
}

// `unroll` vectors at once keep that many independent loads of each expert in flight.
template <bool stream, int unroll, class Acc, class In, class Out>
FASTGROW_TARGET inline void mean_vectors(
    const In* const* experts, const Acc* weights, int64_t n_experts, Out* out, int64_t i) {
  constexpr int width = Vector<Acc>::width;
  Vector<Acc> sum[unroll];
  for (int u = 0; u < unroll; ++u) {
    sum[u] = multiply(broadcast(weights[0]), load<Acc>(experts[0] + i + u * width));
  }
  for (int64_t k = 1; k < n_experts; ++k) {
    const Vector<Acc> weight = broadcast(weights[k]);
    for (int u = 0; u < unroll; ++u) {
      sum[u] = multiply_add(weight, load<Acc>(experts[k] + i + u * width), sum[u]);
    }
  }
  for (int u = 0; u < unroll; ++u) store<stream>(out + i + u * width, sum[u]);
}

// out[i] = sum over k of weights[k] * experts[k][i], for i < n; zero where there is no expert.
template <bool stream, class Acc, class In, class Out>
FASTGROW_TARGET void mean_span(
    const In* const* experts, const Acc* weights, int64_t n_experts, Out* out, int64_t n) {
  constexpr int width = Vector<Acc>::width;
  constexpr int unroll = 4;
  if (n_experts == 0) {
    std::fill(out, out + n, static_cast<Out>(0.0f));
    return;
  }
  int64_t i = 0;
  if constexpr (stream) {
    constexpr uintptr_t cache_line = 64;
    for (; i < n && reinterpret_cast<uintptr_t>(out + i) % cache_line != 0; ++i) {
      out[i] = static_cast<Out>(mean_one(experts, weights, n_experts, i));
    }
  }
  for (; i + unroll * width <= n; i += unroll * width) {
    mean_vectors<stream, unroll>(experts, weights, n_experts, out, i);
  }
  for (; i + width <= n; i += width) {
    mean_vectors<false, 1>(experts, weights, n_experts, out, i);
  }
  for (; i < n; ++i) out[i] = static_cast<Out>(mean_one(experts, weights, n_experts, i));
  if constexpr (stream) finish_streams();
}
