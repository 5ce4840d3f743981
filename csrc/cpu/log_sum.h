// Running statistics of some logits of a row: the largest, the mass and the sum.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

namespace fastgrow {

// Infinities and NaN give the same log() as the formula: +inf if a logit is +inf, -inf if all are
// -inf, NaN if one is NaN.
struct LogSum {
  double top = -std::numeric_limits<double>::infinity();  // the largest logit that is not NaN
  double mass = 0;                                        // sum of exp(x - shift())
  double total = 0;                                       // sum of x

  // If the largest logit is infinite, subtracting it would give NaN.
  double shift() const { return std::isinf(top) ? 0 : top; }

  // The mass relative to another shift. A mass of zero stays zero for any shift.
  double relative_to(double other) const {
    return mass == 0 || shift() == other ? mass : mass * std::exp(shift() - other);
  }

  void add(const LogSum& other) {
    const LogSum before = *this;
    top = std::max(top, other.top);
    mass = before.relative_to(shift()) + other.relative_to(shift());
    total += other.total;
  }
};

}  // namespace fastgrow
