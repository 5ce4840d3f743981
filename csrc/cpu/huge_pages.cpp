// use_huge_pages_: asks the system to back memory that has not been touched yet by large pages.
//
// A new tensor's first write stops at every page for the system to clear it, which costs more than
// the write. Where the system leaves large pages to the asking (Linux: "madvise"), they take a five
// hundredth of the stops.

#include <cstdint>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastgrow {
namespace {

constexpr uintptr_t kHugePage = 2 << 20;

void use_huge_pages([[maybe_unused]] torch::stable::Tensor fresh) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  STD_TORCH_CHECK(fresh.is_cpu() && fresh.is_contiguous(),
                  "use_huge_pages: expected a contiguous tensor on the CPU");
  const auto begin = reinterpret_cast<uintptr_t>(fresh.mutable_data_ptr());
  const uintptr_t end = begin + fresh.numel() * fresh.element_size();
  // Whole pages within the tensor alone: it takes no more memory, and neighbours are left alone.
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = end / kHugePage * kHugePage;
  // It is a hint: where the system refuses, nothing is lost.
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace
}  // namespace fastgrow

STABLE_TORCH_LIBRARY_FRAGMENT(fastgrow_native, m) {
  m.def("use_huge_pages_(Tensor(a!) fresh) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgrow_native, CPU, m) {
  m.impl("use_huge_pages_", TORCH_BOX(&fastgrow::use_huge_pages));
}
