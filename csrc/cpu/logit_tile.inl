// One row of a tile of logits. Included once per instruction set.

#include "vector_math.inl"

// Logits of a row, whole groups of vectors; the bias, if there is one, is added when they are read.
struct Logits {
  const float* product;
  const float* bias;  // null if there is none

  FASTGROW_TARGET Vector<float> vector(int64_t i) const {
    const Vector<float> x = load<float>(product + i);
    return bias == nullptr ? x : add(x, load<float>(bias + i));
  }
};

constexpr int kGroup = kVectorMultiple / Vector<float>::width;  // vectors of a group

// The LogSum of n logits, a multiple of kVectorMultiple and few enough to add in float32. They are
// read twice, the second time from the first-level cache.
FASTGROW_TARGET inline LogSum log_sum_of_groups(const Logits& logits, int64_t n) {
  constexpr int width = Vector<float>::width;
  Vector<float> top[kGroup], total[kGroup], mass[kGroup];
  for (int u = 0; u < kGroup; ++u) {
    top[u] = broadcast(-std::numeric_limits<float>::infinity());
    total[u] = mass[u] = broadcast(0.0f);
  }
  for (int64_t i = 0; i < n; i += kVectorMultiple) {
    for (int u = 0; u < kGroup; ++u) {
      const Vector<float> x = logits.vector(i + u * width);
      top[u] = maximum(x, top[u]);
      total[u] = add(total[u], x);
    }
  }
  LogSum sum;
  for (int u = 0; u < kGroup; ++u) {
    sum.top = std::max<double>(sum.top, largest_lane(top[u]));
    sum.total += sum_of_lanes(total[u]);
  }
  const Vector<float> minus_shift = broadcast(static_cast<float>(-sum.shift()));
  for (int64_t i = 0; i < n; i += kVectorMultiple) {
    for (int u = 0; u < kGroup; ++u) {
      const Vector<float> x = logits.vector(i + u * width);
      mass[u] = add(mass[u], exponential(add(x, minus_shift)));
    }
  }
  for (int u = 0; u < kGroup; ++u) sum.mass += sum_of_lanes(mass[u]);
  return sum;
}

// The last logits of a row, fewer than a group, padded.
struct alignas(64) Remainder {
  float value[kVectorMultiple];

  FASTGROW_TARGET Remainder(const Logits& logits, int64_t begin, int64_t n, float filling) {
    std::fill(value, value + kVectorMultiple, filling);
    for (int64_t i = 0; i < n; ++i) {
      value[i] = logits.product[begin + i];
      if (logits.bias != nullptr) value[i] += logits.bias[begin + i];
    }
  }
};

FASTGROW_TARGET LogSum log_sum_of(const float* product, const float* bias, int64_t n) {
  LogSum sum;
  const int64_t whole = n / kVectorMultiple * kVectorMultiple;
  for (int64_t i = 0; i < whole; i += kBlock) {
    const Logits logits{product + i, bias == nullptr ? nullptr : bias + i};
    sum.add(log_sum_of_groups(logits, std::min(kBlock, whole - i)));
  }
  if (whole < n) {
    // The total is computed here, because the padding would change it.
    const float lowest = -std::numeric_limits<float>::infinity();
    const Remainder rest({product, bias}, whole, n - whole, lowest);
    LogSum last = log_sum_of_groups({rest.value, nullptr}, kVectorMultiple);
    last.total = 0;
    for (int64_t i = 0; i < n - whole; ++i) last.total += rest.value[i];
    sum.add(last);
  }
  return sum;
}

FASTGROW_TARGET inline Vector<float> gradient_of(Vector<float> x, const RowGradient& row) {
  const Vector<float> p = exponential(add(x, broadcast(-row.log_sum)));
  return multiply_add(broadcast(row.of_log_sum), p, broadcast(row.of_each));
}

// Replaces logits by their gradients, see RowGradient.
FASTGROW_TARGET void gradients_of(float* product, const float* bias, int64_t n,
                                  const RowGradient& row) {
  constexpr int width = Vector<float>::width;
  const Logits logits{product, bias};
  int64_t i = 0;
  for (; i + width <= n; i += width) {
    store<false>(product + i, gradient_of(logits.vector(i), row));
  }
  if (i == n) return;
  Remainder rest(logits, i, n - i, 0.0f);
  store<false>(rest.value, gradient_of(load<float>(rest.value), row));
  std::copy(rest.value, rest.value + (n - i), product + i);
}
