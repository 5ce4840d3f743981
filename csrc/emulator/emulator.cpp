#include "emulator.h"

#include <ucontext.h>

#include <array>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <torch/headeronly/util/Exception.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace fastgrow::emulator {

Position here;

namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr unsigned kWarp = 32;

enum class State { ready, waits_for_block, waits_for_warp, over };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  State state = State::ready;
  dim3 index{0};
  size_t exchanges = 0;
  void* fake_stack = nullptr;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<std::array<uint64_t, 2 * kWarp>> slots;  // of each warp
  const std::function<void()>* kernel = nullptr;
  ucontext_t scheduler;
  size_t current = 0;
  void* fake_stack = nullptr;
  const void* stack = nullptr;
  size_t stack_bytes = 0;
};

Block block;
std::vector<std::pair<void*, size_t>>& shared_memory() {
  static std::vector<std::pair<void*, size_t>> all;
  return all;
}

// AddressSanitizer has to be told when the stack changes.
void begin_switch([[maybe_unused]] void** fake_stack, [[maybe_unused]] const void* stack,
                  [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
#endif
}

void end_switch([[maybe_unused]] void* fake_stack, [[maybe_unused]] const void** stack,
                [[maybe_unused]] size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, stack, bytes);
#endif
}

void to_scheduler(State state) {
  Fiber& fiber = block.fibers[block.current];
  fiber.state = state;
  begin_switch(state == State::over ? nullptr : &fiber.fake_stack, block.stack, block.stack_bytes);
  swapcontext(&fiber.context, &block.scheduler);
  end_switch(fiber.fake_stack, &block.stack, &block.stack_bytes);
}

void fiber_main() {
  end_switch(nullptr, &block.stack, &block.stack_bytes);
  (*block.kernel)();
  to_scheduler(State::over);
}

void resume(size_t index) {
  block.current = index;
  Fiber& fiber = block.fibers[index];
  here.thread_index = fiber.index;
  begin_switch(&block.fake_stack, fiber.stack.get(), kStackBytes);
  swapcontext(&block.scheduler, &fiber.context);
  end_switch(block.fake_stack, nullptr, nullptr);
}

// Lets go on those of [begin, end) that wait for each other, once all of them do.
bool release(size_t begin, size_t end, State waiting) {
  size_t count = 0;
  for (size_t i = begin; i < end; ++i) count += block.fibers[i].state == waiting;
  if (count < end - begin) return false;
  for (size_t i = begin; i < end; ++i) block.fibers[i].state = State::ready;
  return true;
}

void put_in_order(std::vector<size_t>& order) {
  static std::minstd_rand random;
  const char* variable = std::getenv("FASTGROW_EMULATOR_ORDER");
  const std::string_view wanted = variable == nullptr ? "forward" : variable;
  if (wanted == "backward") std::sort(order.begin(), order.end(), std::greater<>());
  if (wanted == "shuffled") std::shuffle(order.begin(), order.end(), random);
}

void run_block() {
  const size_t n = block.fibers.size();
  for (auto [memory, bytes] : shared_memory()) std::memset(memory, 0xff, bytes);
  std::vector<size_t> order(n);
  for (size_t i = 0; i < n; ++i) {
    Fiber& fiber = block.fibers[i];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    fiber.state = State::ready;
    fiber.exchanges = 0;
    fiber.index = dim3(static_cast<unsigned>(i));
    makecontext(&fiber.context, fiber_main, 0);
    order[i] = i;
  }
  while (true) {
    put_in_order(order);
    for (size_t i : order) {
      if (block.fibers[i].state == State::ready) resume(i);
    }
    bool goes_on = false;
    for (size_t warp = 0; warp < n; warp += kWarp) {
      goes_on |= release(warp, warp + kWarp, State::waits_for_warp);
    }
    goes_on |= release(0, n, State::waits_for_block);
    if (goes_on) continue;
    size_t over = 0;
    for (const Fiber& fiber : block.fibers) over += fiber.state == State::over;
    if (over == n) return;
    STD_TORCH_CHECK(false, "emulator: some threads of a block wait for others that wait elsewhere "
                    "or are over (", over, " of ", n, ")");
  }
}

}  // namespace

void run(dim3 grid, dim3 size, const std::function<void()>& kernel) {
  STD_TORCH_CHECK(size.x % kWarp == 0 && size.x <= 1024 && size.y == 1 && size.z == 1,
                  "emulator: a block must be whole warps in one dimension");
  STD_TORCH_CHECK(grid.x > 0 && grid.x <= 0x7fffffff && grid.y > 0 && grid.y <= 65535 &&
                      grid.z > 0 && grid.z <= 65535,
                  "emulator: a grid that CUDA refuses");
  block.fibers.resize(size.x);
  block.slots.resize(size.x / kWarp);
  block.kernel = &kernel;
  here.block_size = size;
  here.grid_size = grid;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        here.block_index = dim3(x, y, z);
        run_block();
      }
    }
  }
}

void register_shared(void* memory, size_t bytes) {
  std::memset(memory, 0xff, bytes);
  shared_memory().emplace_back(memory, bytes);
}

void wait_for_block() { to_scheduler(State::waits_for_block); }

void wait_for_warp(unsigned mask) {
  STD_TORCH_CHECK(mask == 0xffffffff, "emulator: a warp's lanes wait for all of them");
  to_scheduler(State::waits_for_warp);
}

uint64_t* next_slots() {
  const size_t exchange = block.fibers[block.current].exchanges++;
  return &block.slots[block.current / kWarp][exchange % 2 * kWarp];
}

}  // namespace fastgrow::emulator
