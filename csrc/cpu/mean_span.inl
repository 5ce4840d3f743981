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

// Loads two vectors: the first and second half of the elements, or, if that is cheaper, the even and
// the odd ones. The order does not matter, because sums are over the experts.
template <class In, class Out>
constexpr bool is_apart = std::is_same_v<In, BFloat16> && std::is_same_v<Out, BFloat16>;

template <bool apart, class Acc, class In>
FASTGROW_TARGET inline void load_two(const In* p, Vector<Acc>& a, Vector<Acc>& b) {
  if constexpr (apart) {
    load_apart(p, a, b);
  } else {
    a = load<Acc>(p);
    b = load<Acc>(p + Vector<Acc>::width);
  }
}

template <bool apart, bool stream, class Acc, class Out>
FASTGROW_TARGET inline void store_two(Out* p, Vector<Acc> a, Vector<Acc> b) {
  if constexpr (apart) {
    store_together<stream>(p, a, b);
  } else {
    store<stream>(p, a);
    store<stream>(p + Vector<Acc>::width, b);
  }
}

// Distance of prefetches into the second-level cache, which save 10 to 20 % of a large mean's time.
constexpr int64_t kBytesAhead = 1024;

template <int64_t bytes, class In>
FASTGROW_TARGET inline void fetch_ahead(const In* p) {
  constexpr int64_t cache_line = 64;
  const char* ahead = reinterpret_cast<const char*>(p) + kBytesAhead;
  for (int64_t i = 0; i < bytes; i += cache_line) __builtin_prefetch(ahead + i, 0, 2);
}

// Processes 2 * `pairs` vectors at once, so that this many loads of each expert are in flight.
template <bool ahead, bool stream, int pairs, class Acc, class In, class Out>
FASTGROW_TARGET inline void mean_vectors(
    const In* const* experts, const Acc* weights, int64_t n_experts, Out* out, int64_t i) {
  constexpr bool apart = is_apart<In, Out>;
  constexpr int step = 2 * Vector<Acc>::width;
  Vector<Acc> a[pairs], b[pairs], x, y;
  for (int64_t k = 0; k < n_experts; ++k) {
    const Vector<Acc> weight = broadcast(weights[k]);
    if constexpr (ahead) fetch_ahead<pairs * step * sizeof(In)>(experts[k] + i);
    for (int u = 0; u < pairs; ++u) {
      load_two<apart>(experts[k] + i + u * step, x, y);
      a[u] = k == 0 ? multiply(weight, x) : multiply_add(weight, x, a[u]);
      b[u] = k == 0 ? multiply(weight, y) : multiply_add(weight, y, b[u]);
    }
  }
  for (int u = 0; u < pairs; ++u) store_two<apart, stream>(out + i + u * step, a[u], b[u]);
}

// out[i] = sum over k of weights[k] * experts[k][i], for i < n; zero if there is no expert.
// `ahead` prefetches the next columns, `stream` writes around the caches.
template <bool ahead, bool stream, class Acc, class In, class Out>
FASTGROW_TARGET void mean_span(
    const In* const* experts, const Acc* weights, int64_t n_experts, Out* out, int64_t n) {
  constexpr int pair = 2 * Vector<Acc>::width;
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
  for (; i + 2 * pair <= n; i += 2 * pair) {
    mean_vectors<ahead, stream, 2>(experts, weights, n_experts, out, i);
  }
  for (; i + pair <= n; i += pair) mean_vectors<false, false, 1>(experts, weights, n_experts, out, i);
  for (; i < n; ++i) out[i] = static_cast<Out>(mean_one(experts, weights, n_experts, i));
  if constexpr (stream) finish_streams();
}
