#pragma once
/// @file A folder in memory for one process.
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>

namespace gptqd::fuzz {

class MemoryFolder {
 public:
  MemoryFolder() {
    std::string name = "/dev/shm/gptq-dist-fuzz.XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) {
      std::abort();
    }
    path_ = name;
  }
  MemoryFolder(const MemoryFolder&) = delete;
  MemoryFolder& operator=(const MemoryFolder&) = delete;
  ~MemoryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::filesystem::path& path() const { return path_; }

  /// Not atomically and without fsync: a million of them.
  void write(const std::filesystem::path& file, std::span<const std::byte> content) const {
    std::ofstream stream(file, std::ios::binary | std::ios::trunc);
    stream.write(reinterpret_cast<const char*>(content.data()), static_cast<std::streamsize>(content.size()));
    if (!stream.flush()) {
      std::abort();
    }
  }

 private:
  std::filesystem::path path_;
};

}  // namespace gptqd::fuzz
