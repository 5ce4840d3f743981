// Sixteen lanes in an array: the compiler turns the loops into whatever its baseline has.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#define FASTGROW_TARGET

namespace fastgrow::portable {

template <class Acc>
struct Vector {
  static constexpr int width = 16;
  static constexpr bool streams = false;
  Acc lane[width];
};

template <class Acc, class In>
inline Vector<Acc> load(const In* p) {
  Vector<Acc> v;
  for (int i = 0; i < v.width; ++i) v.lane[i] = static_cast<Acc>(p[i]);
  return v;
}

template <class Acc>
inline Vector<Acc> multiply(Acc w, Vector<Acc> x) {
  for (int i = 0; i < x.width; ++i) x.lane[i] *= w;
  return x;
}

template <class Acc>
inline Vector<Acc> multiply_add(Acc w, Vector<Acc> x, Vector<Acc> sum) {
  for (int i = 0; i < x.width; ++i) sum.lane[i] += w * x.lane[i];
  return sum;
}

template <class Acc>
inline Acc multiply_add(Acc w, Acc x, Acc sum) {
  return sum + w * x;
}

template <bool stream, class Acc, class Out>
inline void store(Out* p, Vector<Acc> v) {
  for (int i = 0; i < v.width; ++i) p[i] = static_cast<Out>(v.lane[i]);
}

inline void finish_streams() {}

}  // namespace fastgrow::portable
