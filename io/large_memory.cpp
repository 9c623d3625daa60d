#include "io/large_memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>

namespace gptqd::io {

LargeMemory::LargeMemory(std::size_t bytes) : memory_(allocate(bytes)), size_(bytes) {
  if (memory_ == nullptr) {
    throw std::bad_alloc();
  }
}

std::byte* LargeMemory::allocate(std::size_t bytes) {
  constexpr std::size_t huge_page = std::size_t{2} << 20;
  const std::size_t rounded = (std::max(bytes, std::size_t{1}) + huge_page - 1) / huge_page * huge_page;
  auto* const memory = static_cast<std::byte*>(std::aligned_alloc(huge_page, rounded));
  if (memory != nullptr) {
    ::madvise(memory, rounded, MADV_HUGEPAGE);  // a hint
  }
  return memory;
}

void LargeMemory::Free::operator()(std::byte* memory) const { std::free(memory); }

}  // namespace gptqd::io
