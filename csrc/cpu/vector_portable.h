// Vectors of sixteen lanes in an array; the compiler vectorizes the loops for its baseline.
#pragma once

#include <cmath>
#include <cstring>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "vector_constants.h"

#define FASTGROW_TARGET

namespace fastgrow::portable {

template <class Acc>
struct Vector {
  static constexpr int width = 16;
  Acc lane[width];
};

template <class Acc, class In>
inline Vector<Acc> load(const In* p) {
  Vector<Acc> v;
  for (int i = 0; i < v.width; ++i) v.lane[i] = static_cast<Acc>(p[i]);
  return v;
}

template <class Acc>
inline Vector<Acc> broadcast(Acc x) {
  Vector<Acc> v;
  for (int i = 0; i < v.width; ++i) v.lane[i] = x;
  return v;
}

template <class Acc>
inline Vector<Acc> add(Vector<Acc> a, Vector<Acc> b) {
  for (int i = 0; i < a.width; ++i) a.lane[i] += b.lane[i];
  return a;
}

template <class Acc>
inline Vector<Acc> multiply(Vector<Acc> a, Vector<Acc> b) {
  for (int i = 0; i < a.width; ++i) a.lane[i] *= b.lane[i];
  return a;
}

template <class Acc>
inline Vector<Acc> multiply_add(Vector<Acc> a, Vector<Acc> b, Vector<Acc> sum) {
  for (int i = 0; i < a.width; ++i) sum.lane[i] += a.lane[i] * b.lane[i];
  return sum;
}

template <class Acc>
inline Acc multiply_add(Acc w, Acc x, Acc sum) {
  return sum + w * x;
}

// If one argument is NaN, the second one is returned.
template <class Acc>
inline Vector<Acc> maximum(Vector<Acc> a, Vector<Acc> b) {
  for (int i = 0; i < a.width; ++i) a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}

template <class Acc>
inline Vector<Acc> minimum(Vector<Acc> a, Vector<Acc> b) {
  for (int i = 0; i < a.width; ++i) a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}

// Whether a lane is greater than the bound, or NaN.
template <class Acc>
inline bool any_above(Vector<Acc> x, Acc bound) {
  bool any = false;
  for (int i = 0; i < x.width; ++i) any |= !(x.lane[i] <= bound);
  return any;
}

inline bool all_between(float low, Vector<float> x, float high) {
  bool all = true;
  for (int i = 0; i < x.width; ++i) all &= x.lane[i] >= low && x.lane[i] <= high;
  return all;
}

// Adding and subtracting 1.5 * 2^23 removes the fraction, for |x| < 2^22.
inline Vector<float> round_to_integer(Vector<float> x) {
  constexpr float shift = 12582912.0f;
  for (int i = 0; i < x.width; ++i) x.lane[i] = (x.lane[i] + shift) - shift;
  return x;
}

inline float power_of_two(int32_t exponent) {
  const int32_t bits = static_cast<int32_t>(static_cast<uint32_t>(exponent + 127) << 23);
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// x * 2^n for an integer |n| <= 252, in two steps because 2^n may not be representable.
inline Vector<float> scale_by_power(Vector<float> x, Vector<float> n) {
  for (int i = 0; i < x.width; ++i) {
    // NaN cannot be converted to an integer. x is NaN too then, so the factor does not matter.
    const int32_t whole = n.lane[i] == n.lane[i] ? static_cast<int32_t>(n.lane[i]) : 0;
    const int32_t half = whole >> 1;
    x.lane[i] = x.lane[i] * power_of_two(half) * power_of_two(whole - half);
  }
  return x;
}

// A positive normal number as mantissa * 2^exponent, the mantissa in [sqrt(1/2), sqrt(2)).
inline Vector<float> split(Vector<float> x, Vector<float>& exponent) {
  for (int i = 0; i < x.width; ++i) {
    int32_t bits;
    std::memcpy(&bits, &x.lane[i], sizeof(bits));
    const int32_t power = (bits - kBitsOfRootHalf) >> 23;
    exponent.lane[i] = static_cast<float>(power);
    bits -= static_cast<int32_t>(static_cast<uint32_t>(power) << 23);
    std::memcpy(&x.lane[i], &bits, sizeof(bits));
  }
  return x;
}

template <bool stream, class Acc, class Out>
inline void store(Out* p, Vector<Acc> v) {
  for (int i = 0; i < v.width; ++i) p[i] = static_cast<Out>(v.lane[i]);
}

// The elements with even and with odd indices.
template <class In>
inline void load_apart(const In* p, Vector<float>& even, Vector<float>& odd) {
  for (int i = 0; i < even.width; ++i) even.lane[i] = static_cast<float>(p[2 * i]);
  for (int i = 0; i < odd.width; ++i) odd.lane[i] = static_cast<float>(p[2 * i + 1]);
}

template <bool stream, class Out>
inline void store_together(Out* p, Vector<float> even, Vector<float> odd) {
  for (int i = 0; i < even.width; ++i) p[2 * i] = static_cast<Out>(even.lane[i]);
  for (int i = 0; i < odd.width; ++i) p[2 * i + 1] = static_cast<Out>(odd.lane[i]);
}

inline void finish_streams() {}

}  // namespace fastgrow::portable
