#pragma once

#include <immintrin.h>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#undef FASTGROW_TARGET
#define FASTGROW_TARGET __attribute__((target("avx2,fma,f16c")))

namespace fastgrow::avx2 {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <class Acc>
struct Vector;

template <>
struct Vector<float> {
  static constexpr int width = 8;
  static constexpr bool streams = true;
  __m256 v;
};

template <>
struct Vector<double> {
  static constexpr int width = 4;
  static constexpr bool streams = true;
  __m256d v;
};

template <class Acc>
FASTGROW_TARGET inline Vector<Acc> load(const double* p) {
  return {_mm256_loadu_pd(p)};
}

template <class Acc>
FASTGROW_TARGET inline Vector<Acc> load(const float* p) {
  return {_mm256_loadu_ps(p)};
}

template <class Acc>
FASTGROW_TARGET inline Vector<Acc> load(const BFloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
}

template <class Acc>
FASTGROW_TARGET inline Vector<Acc> load(const Half* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}

FASTGROW_TARGET inline Vector<float> multiply(float w, Vector<float> x) {
  return {_mm256_mul_ps(_mm256_set1_ps(w), x.v)};
}

FASTGROW_TARGET inline Vector<double> multiply(double w, Vector<double> x) {
  return {_mm256_mul_pd(_mm256_set1_pd(w), x.v)};
}

FASTGROW_TARGET inline Vector<float> multiply_add(float w, Vector<float> x, Vector<float> sum) {
  return {_mm256_fmadd_ps(_mm256_set1_ps(w), x.v, sum.v)};
}

FASTGROW_TARGET inline Vector<double> multiply_add(double w, Vector<double> x, Vector<double> sum) {
  return {_mm256_fmadd_pd(_mm256_set1_pd(w), x.v, sum.v)};
}

// One rounding as in the lanes, so that an element's value does not depend on where a row starts.
FASTGROW_TARGET inline float multiply_add(float w, float x, float sum) {
  return __builtin_fmaf(w, x, sum);
}

FASTGROW_TARGET inline double multiply_add(double w, double x, double sum) {
  return __builtin_fma(w, x, sum);
}

template <bool stream>
FASTGROW_TARGET inline void store(double* p, Vector<double> v) {
  stream ? _mm256_stream_pd(p, v.v) : _mm256_storeu_pd(p, v.v);
}

template <bool stream>
FASTGROW_TARGET inline void store(float* p, Vector<float> v) {
  stream ? _mm256_stream_ps(p, v.v) : _mm256_storeu_ps(p, v.v);
}

template <bool stream>
FASTGROW_TARGET inline void store_bits(void* p, __m128i bits) {
  __m128i* to = static_cast<__m128i*>(p);
  stream ? _mm_stream_si128(to, bits) : _mm_storeu_si128(to, bits);
}

template <bool stream>
FASTGROW_TARGET inline void store(BFloat16* p, Vector<float> v) {
  const __m256i bits = _mm256_castps_si256(v.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  const __m256i even = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v.v, v.v, _CMP_UNORD_Q));
  const __m256i rounded = _mm256_blendv_epi8(even, _mm256_set1_epi32(0x7fc0), nan);
  const __m256i pairs = _mm256_packus_epi32(rounded, rounded);
  store_bits<stream>(p, _mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 0x08)));
}

template <bool stream>
FASTGROW_TARGET inline void store(Half* p, Vector<float> v) {
  store_bits<stream>(p, _mm256_cvtps_ph(v.v, _MM_FROUND_TO_NEAREST_INT));
}

inline void finish_streams() { _mm_sfence(); }

}  // namespace fastgrow::avx2
