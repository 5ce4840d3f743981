// Counter-based uniform numbers: Philox 4x32 with ten rounds (Salmon et al., "Parallel random numbers:
// as easy as 1, 2, 3", 2011). The same as fastgrow/ops/experts/philox.py, which runs on every device.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FASTGROW_ANYWHERE __host__ __device__
#else
#define FASTGROW_ANYWHERE
#endif

namespace fastgrow {

// A number in [0, 1), a multiple of 2^-24. The key is the seed, the counter is (row, step); 24 bits
// of the first word are used.
FASTGROW_ANYWHERE inline double philox_uniform(int64_t seed, int64_t step, int64_t row) {
  const auto low = [](int64_t x) { return static_cast<uint32_t>(x); };
  const auto high = [](int64_t x) { return static_cast<uint32_t>(static_cast<uint64_t>(x) >> 32); };
  uint32_t counter[4] = {low(row), high(row), low(step), high(step)};
  uint32_t key[2] = {low(seed), high(seed)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * counter[2];
    counter[0] = static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0];
    counter[1] = static_cast<uint32_t>(b);
    counter[2] = static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1];
    counter[3] = static_cast<uint32_t>(a);
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return (counter[0] >> 8) * 0x1p-24;
}

}  // namespace fastgrow
