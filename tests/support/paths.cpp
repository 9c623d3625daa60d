#include "tests/support/paths.hpp"

#include <cstdlib>
#include <system_error>

#include "kernels/base/error.hpp"

namespace gptqd::test {

namespace {

/// The environment moves the tree: tests built on one machine may run on another.
std::filesystem::path below(const char* variable, const char* built_in, const std::string& relative) {
  const char* root = std::getenv(variable);
  return std::filesystem::path(root != nullptr ? root : built_in) / relative;
}

}  // namespace

std::filesystem::path source_path(const std::string& relative) {
  return below("GPTQD_SOURCE_DIR", GPTQD_BUILT_SOURCE_DIR, relative);
}

std::filesystem::path binary_path(const std::string& relative) {
  return below("GPTQD_BINARY_DIR", GPTQD_BUILT_BINARY_DIR, relative);
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
