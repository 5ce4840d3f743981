// The interface that the kernels use: CUDA, or the emulator that runs them on a CPU.
#pragma once

#include <cstdint>
#include <utility>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#ifdef __CUDACC__

#include <cuda_runtime.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/shim_utils.h>

// The dispatch key that the operators are registered under.
#define FASTGROW_DEVICE CUDA

namespace fastgrow::cuda {

inline bool is_on_device(const torch::stable::Tensor& t) { return t.is_cuda(); }

// Makes a tensor's device current while this object exists, and holds its current stream.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const torch::stable::Tensor& t) : guard_(t.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <class... Parameters, class... Arguments>
  void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments&&... arguments) const {
    kernel<<<grid, block, 0, stream_>>>(std::forward<Arguments>(arguments)...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

// Shared memory of the block: one T in each kernel that calls this.
template <class T>
__device__ T& shared() {
  __shared__ T memory;
  return memory;
}

}  // namespace fastgrow::cuda

#else

#include "../emulator/emulator.h"

#endif
