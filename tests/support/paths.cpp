#include "tests/support/paths.hpp"

#include <cstdlib>
#include <system_error>

#include "kernels/base/error.hpp"

namespace gptqd::test {

namespace {

std::filesystem::path from_environment(const char* name, const std::string& relative) {
  const char* root = std::getenv(name);
  require(root != nullptr, fmt::format("tests need {} in the environment; run them through ctest", name));
  return std::filesystem::path(root) / relative;
}

}  // namespace

std::filesystem::path source_path(const std::string& relative) {
  return from_environment("GPTQD_SOURCE_DIR", relative);
}

std::filesystem::path binary_path(const std::string& relative) {
  return from_environment("GPTQD_BINARY_DIR", relative);
}

TemporaryFolder::TemporaryFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "gptqd-test-XXXXXX").string();
  require(mkdtemp(pattern.data()) != nullptr, "cannot make a temporary folder");
  path_ = pattern;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace gptqd::test
