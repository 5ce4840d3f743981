#pragma once

#include <immintrin.h>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "vector_constants.h"

#undef FASTGROW_TARGET
#define FASTGROW_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))

namespace fastgrow::avx512 {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <class Acc>
struct Vector;

template <>
struct Vector<float> {
  static constexpr int width = 16;
  __m512 v;
};

template <>
struct Vector<double> {
  static constexpr int width = 8;
  __m512d v;
};

template <class Acc>
FASTGROW_TARGET inline Vector<Acc> load(const double* p) {
  return {_mm512_loadu_pd(p)};
}

template <class Acc>
FASTGROW_TARGET inline Vector<Acc> load(const float* p) {
  return {_mm512_loadu_ps(p)};
}

template <class Acc>
FASTGROW_TARGET inline Vector<Acc> load(const BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}

template <class Acc>
FASTGROW_TARGET inline Vector<Acc> load(const Half* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

FASTGROW_TARGET inline Vector<float> broadcast(float x) {
  return {_mm512_set1_ps(x)};
}

FASTGROW_TARGET inline Vector<double> broadcast(double x) {
  return {_mm512_set1_pd(x)};
}

FASTGROW_TARGET inline Vector<float> add(Vector<float> a, Vector<float> b) {
  return {_mm512_add_ps(a.v, b.v)};
}

FASTGROW_TARGET inline Vector<double> add(Vector<double> a, Vector<double> b) {
  return {_mm512_add_pd(a.v, b.v)};
}

FASTGROW_TARGET inline Vector<float> multiply(Vector<float> a, Vector<float> b) {
  return {_mm512_mul_ps(a.v, b.v)};
}

FASTGROW_TARGET inline Vector<double> multiply(Vector<double> a, Vector<double> b) {
  return {_mm512_mul_pd(a.v, b.v)};
}

FASTGROW_TARGET inline Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> sum) {
  return {_mm512_fmadd_ps(a.v, b.v, sum.v)};
}

FASTGROW_TARGET inline Vector<double> multiply_add(Vector<double> a, Vector<double> b, Vector<double> sum) {
  return {_mm512_fmadd_pd(a.v, b.v, sum.v)};
}

// If one argument is NaN, the second one is returned.
FASTGROW_TARGET inline Vector<float> maximum(Vector<float> a, Vector<float> b) {
  return {_mm512_max_ps(a.v, b.v)};
}

FASTGROW_TARGET inline Vector<double> maximum(Vector<double> a, Vector<double> b) {
  return {_mm512_max_pd(a.v, b.v)};
}

FASTGROW_TARGET inline Vector<float> minimum(Vector<float> a, Vector<float> b) {
  return {_mm512_min_ps(a.v, b.v)};
}

FASTGROW_TARGET inline Vector<double> minimum(Vector<double> a, Vector<double> b) {
  return {_mm512_min_pd(a.v, b.v)};
}

// Whether a lane is greater than the bound, or NaN.
FASTGROW_TARGET inline bool any_above(Vector<float> x, float bound) {
  return _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(bound), _CMP_NLE_UQ) != 0;
}

FASTGROW_TARGET inline bool any_above(Vector<double> x, double bound) {
  return _mm512_cmp_pd_mask(x.v, _mm512_set1_pd(bound), _CMP_NLE_UQ) != 0;
}

FASTGROW_TARGET inline bool all_between(float low, Vector<float> x, float high) {
  const __mmask16 above = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(low), _CMP_GE_OQ);
  const __mmask16 below = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(high), _CMP_LE_OQ);
  return static_cast<__mmask16>(above & below) == 0xffff;
}

FASTGROW_TARGET inline Vector<float> round_to_integer(Vector<float> x) {
  return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

FASTGROW_TARGET inline Vector<float> scale_by_power(Vector<float> x, Vector<float> n) {
  return {_mm512_scalef_ps(x.v, n.v)};
}

FASTGROW_TARGET inline Vector<float> split(Vector<float> x, Vector<float>& exponent) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i over = _mm512_sub_epi32(bits, _mm512_set1_epi32(kBitsOfRootHalf));
  const __m512i power = _mm512_srai_epi32(over, 23);
  exponent.v = _mm512_cvtepi32_ps(power);
  return {_mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(power, 23)))};
}

FASTGROW_TARGET inline float multiply_add(float w, float x, float sum) {
  return __builtin_fmaf(w, x, sum);
}

FASTGROW_TARGET inline double multiply_add(double w, double x, double sum) {
  return __builtin_fma(w, x, sum);
}

template <bool stream>
FASTGROW_TARGET inline void store(double* p, Vector<double> v) {
  stream ? _mm512_stream_pd(p, v.v) : _mm512_storeu_pd(p, v.v);
}

template <bool stream>
FASTGROW_TARGET inline void store(float* p, Vector<float> v) {
  stream ? _mm512_stream_ps(p, v.v) : _mm512_storeu_ps(p, v.v);
}

template <bool stream>
FASTGROW_TARGET inline void store_bits(void* p, __m256i bits) {
  __m256i* to = static_cast<__m256i*>(p);
  stream ? _mm256_stream_si256(to, bits) : _mm256_storeu_si256(to, bits);
}

// The bfloat16 is in the upper half of each lane. The CPU's own conversion (avx512_bf16) is not used,
// because it flushes subnormals and torch does not.
FASTGROW_TARGET inline __m512i round_to_bfloat16(Vector<float> v) {
  const __m512i bits = _mm512_castps_si512(v.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __mmask16 nan = _mm512_cmp_ps_mask(v.v, v.v, _CMP_UNORD_Q);
  const __m512i even = _mm512_add_epi32(bits, bias);
  return _mm512_mask_mov_epi32(even, nan, _mm512_set1_epi32(0x7fc00000));
}

template <bool stream>
FASTGROW_TARGET inline void store(BFloat16* p, Vector<float> v) {
  const __m512i rounded = _mm512_srli_epi32(round_to_bfloat16(v), 16);
  store_bits<stream>(p, _mm512_cvtepi32_epi16(rounded));
}

// A 32-bit lane contains two adjacent elements, so separating even and odd ones needs no shuffle.
FASTGROW_TARGET inline void load_apart(const BFloat16* p, Vector<float>& even,
                                       Vector<float>& odd) {
  const __m512i bits = _mm512_loadu_si512(p);
  even.v = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  odd.v = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(-0x10000)));
}

template <bool stream>
FASTGROW_TARGET inline void store_together(BFloat16* p, Vector<float> even, Vector<float> odd) {
  const __m512i low = _mm512_srli_epi32(round_to_bfloat16(even), 16);
  const __m512i bits = _mm512_mask_mov_epi16(low, 0xaaaaaaaa, round_to_bfloat16(odd));
  __m512i* to = reinterpret_cast<__m512i*>(p);
  stream ? _mm512_stream_si512(to, bits) : _mm512_storeu_si512(to, bits);
}

template <bool stream>
FASTGROW_TARGET inline void store(Half* p, Vector<float> v) {
  store_bits<stream>(p, _mm512_cvtps_ph(v.v, _MM_FROUND_TO_NEAREST_INT));
}

inline void finish_streams() { _mm_sfence(); }

}  // namespace fastgrow::avx512
