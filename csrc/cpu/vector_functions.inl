#include "vector_math.inl"

FASTGROW_TARGET inline void exponential_of(float* x, int64_t n) {
  for (int64_t i = 0; i < n; i += Vector<float>::width) {
    store<false>(x + i, exponential(load<float>(x + i)));
  }
}

FASTGROW_TARGET inline void logarithm_of(float* x, int64_t n) {
  for (int64_t i = 0; i < n; i += Vector<float>::width) {
    store<false>(x + i, logarithm(load<float>(x + i)));
  }
}
