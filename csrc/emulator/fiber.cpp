#include "fiber.h"

#if defined(__x86_64__)
// void fastgrow_switch_stack(void** from, void* to): saves the callee-saved registers on the old stack
// and restores them from the new one.
asm(R"(
.text
.type fastgrow_switch_stack, @function
fastgrow_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastgrow_switch_stack, . - fastgrow_switch_stack
)");
extern "C" void fastgrow_switch_stack(void** from, void* to);
#endif

namespace fastgrow::emulator {

namespace {
Fiber* came_from = nullptr;
}

void Fiber::start(void (*main)()) {
  if (!stack_) stack_ = std::make_unique<char[]>(kBytes);
  bottom_ = stack_.get();
  bytes_ = kBytes;
#if defined(__x86_64__)
  const auto end = reinterpret_cast<uintptr_t>(stack_.get() + kBytes) / 16 * 16;
  auto* top = reinterpret_cast<uintptr_t*>(end);
  *--top = 0;  // where `main` would return to
  *--top = reinterpret_cast<uintptr_t>(main);
  for (int i = 0; i < 6; ++i) *--top = 0;
  top_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_.get();
  context_.uc_stack.ss_size = kBytes;
  context_.uc_link = nullptr;
  makecontext(&context_, main, 0);
#endif
}

void Fiber::switch_to(Fiber& other) {
  came_from = this;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake_stack_, other.bottom_, other.bytes_);
#endif
#if defined(__x86_64__)
  fastgrow_switch_stack(&top_, other.top_);
#else
  swapcontext(&context_, &other.context_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_, &came_from->bottom_, &came_from->bytes_);
#endif
}

void Fiber::has_started() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &came_from->bottom_, &came_from->bytes_);
#endif
}

}  // namespace fastgrow::emulator
