// K logit tensors of one shape, read row by row: shared code of the operations over them.
//
// Each expert has its own storage and strides; only the last dimension has to be contiguous. Sums
// over the experts are fp32 (fp64 for fp64), in the order of the experts.
#pragma once

#include <array>
#include <cstdint>
#include <type_traits>
#include <vector>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

namespace fastgrow {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMaxExperts = 64;

template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The offset of each row of a tensor, in elements; a row is the tensor's last dimension.
class RowOffsets {
 public:
  explicit RowOffsets(const Tensor& t);
  int64_t operator()(int64_t row) const {
    int64_t offset = 0;
    for (const Dimension& d : dimensions_) {
      offset += row % d.size * d.stride;
      row /= d.size;
    }
    return offset;
  }

 private:
  struct Dimension {
    int64_t size;
    int64_t stride;
  };
  std::vector<Dimension> dimensions_;  // the innermost first, merged if there is no gap
};

bool last_dimension_is_contiguous(const Tensor& t);

// The Python code has checked all arguments with better messages; these checks protect memory.
// `scale` is [K], or [N, K] with a row of factors for each row of the logits.
void check_experts(const char* operation, const std::vector<Tensor>& logits, const Tensor& scale);
void check_rows(const char* operation, const char* name, const Tensor& t, int64_t n_rows,
                ScalarType dtype);

int64_t count_rows(const Tensor& logits);

inline ScalarType accumulator_type(const Tensor& logits) {
  const bool is_double = logits.scalar_type() == ScalarType::Double;
  return is_double ? ScalarType::Double : ScalarType::Float;
}

// Calls f with a zero of the logits' C++ type.
template <class F>
void with_type_of(const char* operation, const Tensor& logits, const F& f) {
  switch (logits.scalar_type()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    case ScalarType::Half:
      return f(Half{});
    case ScalarType::Double:
      return f(double{});
    default:
      STD_TORCH_CHECK(false, operation,
                      ": logits must be float32, bfloat16, float16 or float64");
  }
}

// The experts that take part in a row, their factors and their indices in the list of experts.
template <class In>
struct Row {
  int64_t n_experts = 0;
  std::array<const In*, kMaxExperts> logits;
  std::array<Accumulator<In>, kMaxExperts> weights;
  std::array<int64_t, kMaxExperts> places;
};

template <class In>
class Experts {
 public:
  using Acc = Accumulator<In>;

  Experts(const std::vector<Tensor>& logits, const Tensor& scale)
      : n_columns(logits[0].size(logits[0].dim() - 1)),
        n_rows(count_rows(logits[0])),
        n_experts(static_cast<int64_t>(logits.size())),
        scale_(scale.const_data_ptr<Acc>()),
        has_row_factors_(scale.dim() == 2) {
    for (const Tensor& t : logits) {
      base_.push_back(t.const_data_ptr<In>());
      offsets_.emplace_back(t);
    }
  }

  // An expert with a factor of zero is left out instead of multiplied by zero, so its infinities and
  // NaN have no effect. `shares`, if given, are K numbers that are compared with zero instead.
  Row<In> row(int64_t index, const Acc* shares = nullptr) const {
    Row<In> row;
    const Acc* scale = scale_ + (has_row_factors_ ? index * n_experts : 0);
    for (int64_t k = 0; k < n_experts; ++k) {
      if ((shares != nullptr ? shares : scale)[k] == 0) continue;
      row.logits[row.n_experts] = base_[k] + offsets_[k](index);
      row.weights[row.n_experts] = scale[k];
      row.places[row.n_experts++] = k;
    }
    return row;
  }

  const int64_t n_columns;
  const int64_t n_rows;
  const int64_t n_experts;

 private:
  std::vector<const In*> base_;
  std::vector<RowOffsets> offsets_;
  const Acc* scale_;
  bool has_row_factors_;
};

}  // namespace fastgrow
