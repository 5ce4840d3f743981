// The part of CUDA that is needed to run the kernels of csrc/cuda on a CPU, with every block and thread,
// so that they can be tested without a GPU (csrc/sanitize.py). It is slow.
//
// A thread is a fiber that runs until it has to wait for others. Barriers and exchanges between lanes
// are checked: it is an error if some threads never reach one, or if a thread finishes while others wait
// for it. Shared memory starts as NaN. FASTGROW_EMULATOR_ORDER is the order of threads that are ready:
// `forward`, `backward` or `shuffled`; with `warps` or `warps backward` a warp runs as far as possible
// before the next one starts. If a result depends on the order, there is a race.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#define FASTGROW_DEVICE CPU
#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)

using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) int4 {
  int x, y, z, w;
};

namespace fastgrow::emulator {

struct Position {
  dim3 thread_index{0}, block_index{0}, block_size{1}, grid_size{1};
};
extern Position here;  // position of the running fiber

// Runs `kernel` as every thread of every block.
void run(dim3 grid, dim3 block, const std::function<void()>& kernel);
void register_shared(void* memory, size_t bytes);
void wait_for_block();
void wait_for_warp(unsigned mask);
// This warp's memory for an exchange, with a slot for each lane. The next exchange uses other memory, so
// that a lane that is ahead does not overwrite values that others have still to read.
uint64_t* next_slots();

// The values of all lanes of the warp.
template <class T>
const uint64_t* exchanged(unsigned mask, T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t* slots = next_slots();
  std::memcpy(&slots[here.thread_index.x % 32], &value, sizeof(T));
  wait_for_warp(mask);
  return slots;
}

template <class T>
T of_lane(unsigned mask, T value, int lane) {
  T other;
  std::memcpy(&other, &exchanged(mask, value)[lane], sizeof(T));
  return other;
}

}  // namespace fastgrow::emulator

#define threadIdx (::fastgrow::emulator::here.thread_index)
#define blockIdx (::fastgrow::emulator::here.block_index)
#define blockDim (::fastgrow::emulator::here.block_size)
#define gridDim (::fastgrow::emulator::here.grid_size)

inline void __syncthreads() { fastgrow::emulator::wait_for_block(); }
inline void __syncwarp(unsigned mask = 0xffffffff) { fastgrow::emulator::wait_for_warp(mask); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int offset) {
  return fastgrow::emulator::of_lane(mask, value, (threadIdx.x % 32) ^ offset);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return fastgrow::emulator::of_lane(mask, value, lane % 32);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int offset) {
  const int lane = threadIdx.x % 32;
  return fastgrow::emulator::of_lane(mask, value, lane < offset ? lane : lane - offset);
}
inline unsigned __ballot_sync(unsigned mask, bool vote) {
  const uint64_t* slots = fastgrow::emulator::exchanged(mask, uint64_t{vote});
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) votes |= static_cast<unsigned>(slots[lane]) << lane;
  return votes;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }
// CUDA requires aligned addresses; x86 does not, so this checks them.
template <class T>
T* aligned(T* p) {
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(p) % sizeof(T) == 0,
                  "emulator: a memory access is not aligned to its size");
  return p;
}
template <class T>
T __ldcs(const T* p) {
  return *aligned(p);
}
template <class T>
T __ldg(const T* p) {
  return *aligned(p);
}
template <class T>
void __stwb(T* p, T x) {
  *aligned(p) = x;
}
// Fibers are switched only when they wait, so these are atomic without further measures.
inline int atomicAdd(int* p, int x) { return std::exchange(*p, *p + x); }
inline int atomicMin(int* p, int x) { return std::exchange(*p, std::min(*p, x)); }
inline int atomicMax(int* p, int x) { return std::exchange(*p, std::max(*p, x)); }
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

namespace fastgrow::cuda {

inline bool is_on_device(const torch::stable::Tensor& t) { return t.is_cpu(); }

class OnDeviceOf {
 public:
  explicit OnDeviceOf(const torch::stable::Tensor&) {}

  template <class... Parameters, class... Arguments>
  void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments&&... arguments) const {
    emulator::run(grid, block, [&] { kernel(arguments...); });
  }
};

template <class T>
T& shared() {
  static T memory;
  static const bool is_known = (emulator::register_shared(&memory, sizeof(T)), true);
  static_cast<void>(is_known);
  return memory;
}

}  // namespace fastgrow::cuda
