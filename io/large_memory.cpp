#include "io/large_memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>

namespace gptqd::io {

LargeMemory::LargeMemory(std::size_t bytes) : size_(bytes) {
  constexpr std::size_t huge_page = std::size_t{2} << 20;
  const std::size_t rounded = (std::max(bytes, std::size_t{1}) + huge_page - 1) / huge_page * huge_page;
  memory_.reset(static_cast<std::byte*>(std::aligned_alloc(huge_page, rounded)));
  if (memory_ == nullptr) {
    throw std::bad_alloc();
  }
  ::madvise(memory_.get(), rounded, MADV_HUGEPAGE);  // a hint
}

void LargeMemory::Free::operator()(std::byte* memory) const { std::free(memory); }

}  // namespace gptqd::io
