#pragma once

#include <immintrin.h>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "vector_constants.h"

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
  __m256 v;
};

template <>
struct Vector<double> {
  static constexpr int width = 4;
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

FASTGROW_TARGET inline Vector<float> broadcast(float x) {
  return {_mm256_set1_ps(x)};
}

FASTGROW_TARGET inline Vector<double> broadcast(double x) {
  return {_mm256_set1_pd(x)};
}

FASTGROW_TARGET inline Vector<float> add(Vector<float> a, Vector<float> b) {
  return {_mm256_add_ps(a.v, b.v)};
}

FASTGROW_TARGET inline Vector<double> add(Vector<double> a, Vector<double> b) {
  return {_mm256_add_pd(a.v, b.v)};
}

FASTGROW_TARGET inline Vector<float> multiply(Vector<float> a, Vector<float> b) {
  return {_mm256_mul_ps(a.v, b.v)};
}

FASTGROW_TARGET inline Vector<double> multiply(Vector<double> a, Vector<double> b) {
  return {_mm256_mul_pd(a.v, b.v)};
}

FASTGROW_TARGET inline Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> sum) {
  return {_mm256_fmadd_ps(a.v, b.v, sum.v)};
}

FASTGROW_TARGET inline Vector<double> multiply_add(Vector<double> a, Vector<double> b, Vector<double> sum) {
  return {_mm256_fmadd_pd(a.v, b.v, sum.v)};
}

// If one argument is NaN, the second one is returned.
FASTGROW_TARGET inline Vector<float> maximum(Vector<float> a, Vector<float> b) {
  return {_mm256_max_ps(a.v, b.v)};
}

FASTGROW_TARGET inline Vector<double> maximum(Vector<double> a, Vector<double> b) {
  return {_mm256_max_pd(a.v, b.v)};
}

FASTGROW_TARGET inline Vector<float> minimum(Vector<float> a, Vector<float> b) {
  return {_mm256_min_ps(a.v, b.v)};
}

FASTGROW_TARGET inline Vector<double> minimum(Vector<double> a, Vector<double> b) {
  return {_mm256_min_pd(a.v, b.v)};
}

// Whether a lane is greater than the bound, or NaN.
FASTGROW_TARGET inline bool any_above(Vector<float> x, float bound) {
  return _mm256_movemask_ps(_mm256_cmp_ps(x.v, _mm256_set1_ps(bound), _CMP_NLE_UQ)) != 0;
}

FASTGROW_TARGET inline bool any_above(Vector<double> x, double bound) {
  return _mm256_movemask_pd(_mm256_cmp_pd(x.v, _mm256_set1_pd(bound), _CMP_NLE_UQ)) != 0;
}

FASTGROW_TARGET inline bool all_between(float low, Vector<float> x, float high) {
  const __m256 above = _mm256_cmp_ps(x.v, _mm256_set1_ps(low), _CMP_GE_OQ);
  const __m256 below = _mm256_cmp_ps(x.v, _mm256_set1_ps(high), _CMP_LE_OQ);
  return _mm256_movemask_ps(_mm256_and_ps(above, below)) == 0xff;
}

FASTGROW_TARGET inline Vector<float> round_to_integer(Vector<float> x) {
  return {_mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

FASTGROW_TARGET inline __m256 power_of_two(__m256i exponent) {
  const __m256i biased = _mm256_add_epi32(exponent, _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}

// x * 2^n for an integer |n| <= 252, in two steps because 2^n may not be representable.
FASTGROW_TARGET inline Vector<float> scale_by_power(Vector<float> x, Vector<float> n) {
  const __m256i whole = _mm256_cvtps_epi32(n.v);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  const __m256 first = _mm256_mul_ps(x.v, power_of_two(half));
  return {_mm256_mul_ps(first, power_of_two(_mm256_sub_epi32(whole, half)))};
}

// A positive normal number as mantissa * 2^exponent, the mantissa in [sqrt(1/2), sqrt(2)).
FASTGROW_TARGET inline Vector<float> split(Vector<float> x, Vector<float>& exponent) {
  const __m256i bits = _mm256_castps_si256(x.v);
  const __m256i over = _mm256_sub_epi32(bits, _mm256_set1_epi32(kBitsOfRootHalf));
  const __m256i power = _mm256_srai_epi32(over, 23);
  exponent.v = _mm256_cvtepi32_ps(power);
  return {_mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(power, 23)))};
}

// Rounds once, as the vector code does, so that an element's value does not depend on the alignment
// of its row.
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

// The bfloat16 is in the upper half of each lane.
FASTGROW_TARGET inline __m256i round_to_bfloat16(Vector<float> v) {
  const __m256i bits = _mm256_castps_si256(v.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v.v, v.v, _CMP_UNORD_Q));
  const __m256i even = _mm256_add_epi32(bits, bias);
  return _mm256_blendv_epi8(even, _mm256_set1_epi32(0x7fc00000), nan);
}

template <bool stream>
FASTGROW_TARGET inline void store(BFloat16* p, Vector<float> v) {
  const __m256i rounded = _mm256_srli_epi32(round_to_bfloat16(v), 16);
  const __m256i pairs = _mm256_packus_epi32(rounded, rounded);
  store_bits<stream>(p, _mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 0x08)));
}

// A 32-bit lane contains two adjacent elements, so separating even and odd ones needs no shuffle.
FASTGROW_TARGET inline void load_apart(const BFloat16* p, Vector<float>& even,
                                       Vector<float>& odd) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  even.v = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
  odd.v = _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(-0x10000)));
}

template <bool stream>
FASTGROW_TARGET inline void store_together(BFloat16* p, Vector<float> even, Vector<float> odd) {
  const __m256i low = _mm256_srli_epi32(round_to_bfloat16(even), 16);
  const __m256i bits = _mm256_blend_epi16(low, round_to_bfloat16(odd), 0xaa);
  __m256i* to = reinterpret_cast<__m256i*>(p);
  stream ? _mm256_stream_si256(to, bits) : _mm256_storeu_si256(to, bits);
}

template <bool stream>
FASTGROW_TARGET inline void store(Half* p, Vector<float> v) {
  store_bits<stream>(p, _mm256_cvtps_ph(v.v, _MM_FROUND_TO_NEAREST_INT));
}

inline void finish_streams() { _mm_sfence(); }

}  // namespace fastgrow::avx2
