#include "io/artifact/contained.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <system_error>

#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

namespace fs = std::filesystem;

bool lies_in(const fs::path& path, const fs::path& folder) {
  return std::mismatch(folder.begin(), folder.end(), path.begin(), path.end()).first == folder.end();
}

}  // namespace

void require_contained(const fs::path& folder, const std::vector<std::string>& names) {
  std::error_code code;
  const fs::path root = fs::canonical(folder, code);
  if (code) {
    throw Error(ErrorKind::input, fmt::format("{}: {}", folder.string(), code.message()));
  }
  const bool is_snapshot = root.parent_path().filename() == "snapshots";
  const fs::path blobs = root.parent_path().parent_path() / "blobs";
  const auto check = [&](const fs::path& path) {
    std::error_code unresolved;
    const fs::path target = fs::canonical(path, unresolved);
    if (unresolved) {
      throw Error(ErrorKind::input, fmt::format("{}: the link leads nowhere: {}", path.string(), unresolved.message()));
    }
    if (!lies_in(target, root) && !(is_snapshot && lies_in(target, blobs))) {
      throw Error(ErrorKind::input,
                  fmt::format("{} is a link to {}, out of the artifact's folder; put the file itself there",
                              path.string(), target.string()));
    }
  };
  for (auto entry = fs::directory_iterator(root, code); !code && entry != fs::directory_iterator();
       entry.increment(code)) {
    std::error_code ignored;
    if (entry->is_symlink(ignored)) {
      check(entry->path());
    }
  }
  if (code) {
    throw Error(ErrorKind::io, fmt::format("cannot list {}: {}", root.string(), code.message()));
  }
  for (const auto& name : names) {
    check(root / name);
  }
}

}  // namespace gptqd::io
