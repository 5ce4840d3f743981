#pragma once

#include <immintrin.h>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

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
  static constexpr bool streams = true;
  __m512 v;
};

template <>
struct Vector<double> {
  static constexpr int width = 8;
  static constexpr bool streams = true;
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

FASTGROW_TARGET inline Vector<float> multiply(float w, Vector<float> x) {
  return {_mm512_mul_ps(_mm512_set1_ps(w), x.v)};
}

FASTGROW_TARGET inline Vector<double> multiply(double w, Vector<double> x) {
  return {_mm512_mul_pd(_mm512_set1_pd(w), x.v)};
}

FASTGROW_TARGET inline Vector<float> multiply_add(float w, Vector<float> x, Vector<float> sum) {
  return {_mm512_fmadd_ps(_mm512_set1_ps(w), x.v, sum.v)};
}

FASTGROW_TARGET inline Vector<double> multiply_add(double w, Vector<double> x, Vector<double> sum) {
  return {_mm512_fmadd_pd(_mm512_set1_pd(w), x.v, sum.v)};
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

// The CPU's own conversion (avx512_bf16) flushes subnormals; torch does not.
template <bool stream>
FASTGROW_TARGET inline void store(BFloat16* p, Vector<float> v) {
  const __m512i bits = _mm512_castps_si512(v.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __m512i even = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(v.v, v.v, _CMP_UNORD_Q);
  const __m512i rounded = _mm512_mask_mov_epi32(even, nan, _mm512_set1_epi32(0x7fc0));
  store_bits<stream>(p, _mm512_cvtepi32_epi16(rounded));
}

template <bool stream>
FASTGROW_TARGET inline void store(Half* p, Vector<float> v) {
  store_bits<stream>(p, _mm512_cvtps_ph(v.v, _MM_FROUND_TO_NEAREST_INT));
}

inline void finish_streams() { _mm_sfence(); }

}  // namespace fastgrow::avx512
