#pragma once
/// @file Where tests find their data and put their files.
#include <filesystem>
#include <string>

namespace gptqd::test {

/// A file or folder of the source tree: source_path("tests/golden/gptq/layers.json").
std::filesystem::path source_path(const std::string& relative);
/// A file of the build tree: binary_path("gptq-dist").
std::filesystem::path binary_path(const std::string& relative);

/// A fresh folder, removed with all it holds when the object goes.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

}  // namespace gptqd::test
