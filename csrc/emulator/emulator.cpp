#include "emulator.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <functional>
#include <random>
#include <string_view>
#include <utility>
#include <vector>

#include <torch/headeronly/util/Exception.h>

#include "fiber.h"

namespace fastgrow::emulator {

Position here;

namespace {

constexpr unsigned kWarp = 32;

enum class State { ready, waits_for_block, waits_for_warp, over };

struct Thread {
  Fiber fiber;
  State state = State::ready;
  size_t exchanges = 0;
};

struct Warp {
  std::array<uint64_t, kWarp> slots[2];
};

// The running block; blocks run one after the other.
struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  const std::function<void()>* kernel = nullptr;
  Fiber scheduler;
  size_t current = 0;
};

Block block;

std::vector<std::pair<void*, size_t>>& shared_memory() {
  static std::vector<std::pair<void*, size_t>> all;
  return all;
}

void to_scheduler(State state) {
  Thread& thread = block.threads[block.current];
  thread.state = state;
  thread.fiber.switch_to(block.scheduler);
}

void thread_main() {
  Fiber::has_started();
  (*block.kernel)();
  to_scheduler(State::over);
}

// Makes the threads [begin, end) ready if all of them are waiting at `waiting`.
bool release(size_t begin, size_t end, State waiting) {
  const auto first = block.threads.begin();
  const auto waits = [&](const Thread& thread) { return thread.state == waiting; };
  if (!std::all_of(first + begin, first + end, waits)) return false;
  for (size_t i = begin; i < end; ++i) block.threads[i].state = State::ready;
  return true;
}

void put_in_order(std::vector<size_t>& order, std::string_view wanted) {
  static std::minstd_rand random;
  if (wanted == "backward") std::sort(order.begin(), order.end(), std::greater<>());
  if (wanted == "shuffled") std::shuffle(order.begin(), order.end(), random);
}

void let_run(size_t i) {
  if (block.threads[i].state != State::ready) return;
  block.current = i;
  here.thread_index = dim3(static_cast<unsigned>(i));
  block.scheduler.switch_to(block.threads[i].fiber);
}

// Runs one warp after the other, each as far as possible without the rest of the block, so that
// accesses without the necessary barrier happen too early.
void run_warps(size_t n, bool last_first) {
  for (size_t i = 0; i < n; i += kWarp) {
    const size_t warp = last_first ? n - kWarp - i : i;
    do {
      for (size_t lane = 0; lane < kWarp; ++lane) let_run(warp + lane);
    } while (release(warp, warp + kWarp, State::waits_for_warp));
  }
}

void run_block() {
  const size_t n = block.threads.size();
  const char* variable = std::getenv("FASTGROW_EMULATOR_ORDER");
  const std::string_view wanted = variable == nullptr ? "forward" : variable;
  for (auto [memory, bytes] : shared_memory()) std::memset(memory, 0xff, bytes);
  std::vector<size_t> order(n);
  for (size_t i = 0; i < n; ++i) {
    block.threads[i].state = State::ready;
    block.threads[i].exchanges = 0;
    block.threads[i].fiber.start(thread_main);
    order[i] = i;
  }
  while (true) {
    if (wanted == "warps" || wanted == "warps backward") {
      run_warps(n, wanted != "warps");
    } else {
      put_in_order(order, wanted);
      for (size_t i : order) let_run(i);
    }
    bool goes_on = false;
    for (size_t warp = 0; warp < n; warp += kWarp) {
      goes_on |= release(warp, warp + kWarp, State::waits_for_warp);
    }
    goes_on |= release(0, n, State::waits_for_block);
    if (goes_on) continue;
    const auto over = std::count_if(block.threads.begin(), block.threads.end(), [](const Thread& t) {
      return t.state == State::over;
    });
    if (static_cast<size_t>(over) == n) return;
    STD_TORCH_CHECK(false, "emulator: some threads of a block wait for others that wait elsewhere "
                    "or have finished (", over, " of ", n, ")");
  }
}

}  // namespace

void run(dim3 grid, dim3 size, const std::function<void()>& kernel) {
  STD_TORCH_CHECK(size.x % kWarp == 0 && size.x > 0 && size.x <= 1024 && size.y == 1 && size.z == 1,
                  "emulator: a block must have whole warps, at most 1024 threads and one dimension");
  STD_TORCH_CHECK(grid.x > 0 && grid.x <= 0x7fffffff && grid.y > 0 && grid.y <= 65535 &&
                      grid.z > 0 && grid.z <= 65535,
                  "emulator: the grid is larger than CUDA permits");
  block.threads.resize(size.x);
  block.warps.resize(size.x / kWarp);
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
  STD_TORCH_CHECK(mask == 0xffffffff, "emulator: the mask of a warp's exchange must contain all lanes");
  to_scheduler(State::waits_for_warp);
}

uint64_t* next_slots() {
  const size_t exchange = block.threads[block.current].exchanges++;
  return block.warps[block.current / kWarp].slots[exchange % 2].data();
}

}  // namespace fastgrow::emulator
