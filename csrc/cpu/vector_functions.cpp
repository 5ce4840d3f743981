// Operators that call the vector functions, for their tests.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#define FASTGROW_KERNELS "vector_functions.inl"
#include "each_instruction_set.h"

namespace fastgrow {
namespace {

using torch::stable::Tensor;

float* numbers(const Tensor& x) {
  STD_TORCH_CHECK(x.is_cpu() && x.is_contiguous() && x.numel() % kVectorMultiple == 0,
                  "expected contiguous float32 with a multiple of ", kVectorMultiple, " elements");
  return x.mutable_data_ptr<float>();
}

void exponential(Tensor x) { FASTGROW_CALL(exponential_of(numbers(x), x.numel())); }

void logarithm(Tensor x) { FASTGROW_CALL(logarithm_of(numbers(x), x.numel())); }

}  // namespace
}  // namespace fastgrow

STABLE_TORCH_LIBRARY_FRAGMENT(fastgrow_native, m) {
  m.def("exponential_(Tensor(a!) x) -> ()");
  m.def("logarithm_(Tensor(a!) x) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgrow_native, CPU, m) {
  m.impl("exponential_", TORCH_BOX(&fastgrow::exponential));
  m.impl("logarithm_", TORCH_BOX(&fastgrow::logarithm));
}
