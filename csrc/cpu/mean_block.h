// How a row is divided, and running statistics of a part: its largest logit and its mass.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include <torch/csrc/stable/ops.h>

namespace fastgrow {

// Columns averaged at a time. Together with the next columns of four experts, which are prefetched,
// they fit a small first-level cache.
constexpr int64_t kBlock = 1024;

// Columns of a task. Independent of the number of threads, so that a row's result depends neither on
// that number nor on the other rows.
constexpr int64_t kChunk = 16 * kBlock;

inline int64_t count_chunks(int64_t n_columns) { return (n_columns + kChunk - 1) / kChunk; }

// Calls f(row, chunk, begin, end) for the columns [begin, end) of every chunk of every row.
template <class F>
void for_each_chunk(int64_t n_rows, int64_t n_columns, const F& f) {
  const int64_t n_chunks = count_chunks(n_columns);
  torch::stable::parallel_for(0, n_rows * n_chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % n_chunks * kChunk;
      f(task / n_chunks, task % n_chunks, first, std::min(first + kChunk, n_columns));
    }
  });
}

// The sum of exponentials of some logits.
struct Mass {
  double top = -std::numeric_limits<double>::infinity();  // the largest logit that is not NaN
  double sum = 0;  // sum of exp(x - shift()); NaN if a logit is NaN or +inf

  // If every logit is -inf, x - top would be NaN and not -inf.
  double shift() const { return top == -std::numeric_limits<double>::infinity() ? 0 : top; }

  // The sum relative to another shift. A sum of zero stays zero for any shift.
  double relative_to(double other) const { return sum == 0 ? 0 : sum * std::exp(shift() - other); }

  void add(const Mass& other) {
    const Mass before = *this;
    top = std::max(top, other.top);
    sum = before.relative_to(shift()) + other.relative_to(shift());
  }

  // As in the formula, log(0) = -inf.
  double log() const { return shift() + std::log(sum); }
};

}  // namespace fastgrow
