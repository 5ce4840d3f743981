// The k largest of the offered numbers, in the order of `torch.topk`: NaN first, then by value, equal
// values by column.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace fastgrow {

template <class Acc>
struct Candidate {
  Acc value;
  int64_t column;

  bool is_before(const Candidate& other) const {
    const bool is_nan = value != value;
    const bool other_is_nan = other.value != other.value;
    if (is_nan != other_is_nan) return is_nan;
    if (!is_nan && value != other.value) return value > other.value;
    return column < other.column;
  }
};

template <class Acc>
class Largest {
 public:
  explicit Largest(int64_t k) : k_(k) {}

  bool is_full() const { return static_cast<int64_t>(heap_.size()) == k_; }

  // The smallest value of a full set; values that are not above it (and not NaN) are not added.
  Acc bound() const { return heap_.front().value; }

  void offer(Candidate<Acc> candidate) {
    if (is_full()) {
      if (!candidate.is_before(heap_.front())) return;
      std::pop_heap(heap_.begin(), heap_.end(), comes_first);
      heap_.pop_back();
    }
    heap_.push_back(candidate);
    std::push_heap(heap_.begin(), heap_.end(), comes_first);
  }

  void offer(const Largest& other) {
    for (const Candidate<Acc>& candidate : other.heap_) offer(candidate);
  }

  std::vector<Candidate<Acc>> in_order() && {
    std::sort(heap_.begin(), heap_.end(), comes_first);
    return std::move(heap_);
  }

 private:
  static bool comes_first(const Candidate<Acc>& a, const Candidate<Acc>& b) {
    return a.is_before(b);
  }

  int64_t k_;
  std::vector<Candidate<Acc>> heap_;  // its front is last in the order
};

}  // namespace fastgrow
