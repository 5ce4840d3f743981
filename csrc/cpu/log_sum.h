// What is known of some logits of a row: the largest, the mass and the plain sum.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

namespace fastgrow {

// Infinities and NaN end up in log() as in the formula: +inf where a logit is +inf, -inf where all
// are -inf, NaN where one is NaN.
struct LogSum {
  double top = -std::numeric_limits<double>::infinity();  // the largest logit that is not NaN
  double mass = 0;                                        // sum of exp(x - shift())
  double total = 0;                                       // sum of x

  // A row of infinities has no largest logit that would leave numbers.
  double shift() const { return std::isinf(top) ? 0 : top; }

  // What the mass is relative to another shift. Nothing stays nothing, however far away.
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
