#include "../philox.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

namespace fastgrow {
namespace {

void fill_uniform(int64_t seed, int64_t step, torch::stable::Tensor out) {
  STD_TORCH_CHECK(out.is_cpu() && out.is_contiguous(), "philox: out must be contiguous");
  double* number = out.mutable_data_ptr<double>();
  for (int64_t row = 0; row < out.numel(); ++row) number[row] = philox_uniform(seed, step, row);
}

}  // namespace
}  // namespace fastgrow

STABLE_TORCH_LIBRARY_FRAGMENT(fastgrow_native, m) {
  m.def("philox_uniform_(int seed, int step, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgrow_native, CPU, m) {
  m.impl("philox_uniform_", TORCH_BOX(&fastgrow::fill_uniform));
}
