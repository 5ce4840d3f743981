// Changing from one stack to another. Where there is assembly for it this is some ten instructions;
// elsewhere the system's ucontext, which enters the kernel each time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace fastgrow::emulator {

// What runs on a stack of its own, or, without `start`, on that of the thread.
class Fiber {
 public:
  // From the beginning of `main`, which must not return, when it is next switched to.
  void start(void (*main)());
  // From this one, which runs, to another.
  void switch_to(Fiber& other);
  // Called first on a new stack.
  static void has_started();

 private:
  static constexpr size_t kBytes = 256 << 10;

  std::unique_ptr<char[]> stack_;
#if defined(__x86_64__)
  void* top_ = nullptr;
#else
  ucontext_t context_;
#endif
  // What AddressSanitizer has to be told of stacks.
  void* fake_stack_ = nullptr;
  const void* bottom_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace fastgrow::emulator
