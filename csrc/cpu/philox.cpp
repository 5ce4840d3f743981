// Uniform numbers by counting: Philox 4x32 with ten rounds (Salmon et al., "Parallel random numbers:
// as easy as 1, 2, 3", 2011). The same as fastgrow/ops/experts/philox.py, which runs on every device.

#include <array>
#include <cstdint>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

namespace fastgrow {
namespace {

using Words = std::array<uint32_t, 4>;

Words philox(Words counter, uint32_t key_0, uint32_t key_1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key_0, static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key_1, static_cast<uint32_t>(a)};
    key_0 += 0x9E3779B9;
    key_1 += 0xBB67AE85;
  }
  return counter;
}

// The key is the seed, the counter is (row, step); 24 bits of the first word become [0, 1).
void philox_uniform(int64_t seed, int64_t step, torch::stable::Tensor out) {
  STD_TORCH_CHECK(out.is_cpu() && out.is_contiguous(), "philox: out must be contiguous");
  double* number = out.mutable_data_ptr<double>();
  const auto low = [](int64_t x) { return static_cast<uint32_t>(x); };
  const auto high = [](int64_t x) { return static_cast<uint32_t>(static_cast<uint64_t>(x) >> 32); };
  for (int64_t row = 0; row < out.numel(); ++row) {
    const Words counter{low(row), high(row), low(step), high(step)};
    number[row] = (philox(counter, low(seed), high(seed))[0] >> 8) * 0x1p-24;
  }
}

}  // namespace
}  // namespace fastgrow

STABLE_TORCH_LIBRARY_FRAGMENT(fastgrow_native, m) {
  m.def("philox_uniform_(int seed, int step, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgrow_native, CPU, m) {
  m.impl("philox_uniform_", TORCH_BOX(&fastgrow::philox_uniform));
}
