// Switches from one stack to another. With the assembly code this takes about ten instructions; other
// architectures use the system's ucontext, which makes a system call each time.
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

// Code that runs on a separate stack, or, without `start`, on the thread's stack.
class Fiber {
 public:
  // Makes the next switch to this fiber start at the beginning of `main`, which must not return.
  void start(void (*main)());
  // Switches from this running fiber to another one.
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
  // Information about stacks that AddressSanitizer requires.
  void* fake_stack_ = nullptr;
  const void* bottom_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace fastgrow::emulator
