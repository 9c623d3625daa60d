#include "io/checked_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <system_error>

#include "io/atomic_file.hpp"
#include "io/checksum.hpp"
#include "io/json_file.hpp"
#include "kernels/base/error.hpp"
#include "kernels/base/fault_point.hpp"

namespace gptqd::io {

namespace {

namespace fs = std::filesystem;

void make_folder(const fs::path& folder) {
  std::error_code code;
  fs::create_directories(folder, code);
  if (code) {
    throw Error(ErrorKind::io, fmt::format("cannot create {}: {}; choose another work folder or check its permissions",
                                           folder.string(), code.message()));
  }
}

Sidecar read_sidecar(const fs::path& path) {
  const auto json = read_json(path);
  const std::string where = path.string();
  return {.xxh3_128 = get<std::string>(json, "xxh3_128", where),
          .bytes = get<std::int64_t>(json, "bytes", where),
          .run = get_or<nlohmann::json>(json, "run", {}, where)};
}

/// The sidecar, or why there is no valid one.
std::pair<std::optional<Sidecar>, std::string> try_sidecar(const fs::path& path) {
  try {
    return {read_sidecar(path), {}};
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::input) {
      throw;
    }
    return {std::nullopt, fmt::format("no valid sidecar: {}", error.message())};
  }
}

std::string checksum_of(const File& file) {
  Hasher hasher;
  std::vector<std::byte> chunk(static_cast<std::size_t>(std::min<std::int64_t>(file.size(), std::int64_t{8} << 20)));
  for (std::int64_t offset = 0; offset < file.size();) {
    const auto bytes = std::min<std::int64_t>(std::ssize(chunk), file.size() - offset);
    const auto part = std::span(chunk).first(static_cast<std::size_t>(bytes));
    file.read_exactly(offset, part);
    hasher.update(part);
    offset += bytes;
  }
  return hasher.hex();
}

}  // namespace

nlohmann::json object_of_run(const nlohmann::json& run, const std::string& key) {
  const bool there = run.is_object() && run.contains(key) && run.at(key).is_object();
  return there ? run.at(key) : nlohmann::json::object();
}

void remove_file(const fs::path& path) {
  std::error_code code;
  fs::remove(path, code);
  if (code) {
    throw Error(ErrorKind::io,
                fmt::format("cannot remove {}: {}; check the folder's permissions", path.string(), code.message()));
  }
}

void CheckedFile::write(std::span<const std::byte> image, const nlohmann::json& run) const {
  const nlohmann::json facts{{"xxh3_128", xxh3_128_hex(image)}, {"bytes", image.size()}, {"run", run}};
  make_folder(path_.parent_path());
  // Old sidecar away, new file, new sidecar: between any two of these the file counts as absent.
  fault_point("file.withdraw");
  remove_file(sidecar());
  write_file_atomically(path_, image);
  write_file_atomically(sidecar(), facts.dump(2) + "\n");
}

std::optional<Sidecar> CheckedFile::find_sidecar() const { return try_sidecar(sidecar()).first; }

FileState CheckedFile::state(bool whole) const {
  std::error_code ignored;
  if (!fs::exists(path_, ignored)) {
    return {.status = FileStatus::missing, .reason = "no file", .bytes = 0, .xxh3_128 = {}};
  }
  const auto [facts, offence] = try_sidecar(sidecar());
  if (!facts) {
    return {.status = FileStatus::missing, .reason = offence, .bytes = 0, .xxh3_128 = {}};
  }
  const File file(path_);
  FileState state{.status = FileStatus::damaged, .reason = {}, .bytes = file.size(), .xxh3_128 = {}};
  if (file.size() != facts->bytes) {
    state.reason = fmt::format("{} bytes, expected {}", file.size(), facts->bytes);
    return state;
  }
  const std::string checksum = whole ? checksum_of(file) : facts->xxh3_128;
  if (checksum != facts->xxh3_128) {
    state.reason = fmt::format("checksum {}, expected {}", checksum, facts->xxh3_128);
    return state;
  }
  state.status = FileStatus::valid;
  state.xxh3_128 = checksum;
  return state;
}

std::pair<LargeMemory, nlohmann::json> CheckedFile::read(std::int64_t max_bytes) const {
  constexpr std::size_t hashed_together = std::size_t{1} << 20;  // while it is in the cache
  Sidecar facts = read_sidecar(sidecar());
  const File file(path_);
  const auto damaged = [&](const std::string& checksum) {
    throw Error(ErrorKind::input,
                fmt::format("{}: {} bytes{}, expected {} with the checksum {}; the file is damaged: remove it and run "
                            "again",
                            path_.string(), file.size(), checksum, facts.bytes, facts.xxh3_128));
  };
  if (file.size() != facts.bytes) {
    damaged("");
  }
  if (file.size() > max_bytes) {
    throw Error(ErrorKind::input, fmt::format("{}: {} bytes, more than the {} that such a file may have",
                                              path_.string(), file.size(), max_bytes));
  }
  LargeMemory image(static_cast<std::size_t>(file.size()));
  Hasher hasher;
  for (std::size_t offset = 0; offset < image.bytes().size(); offset += hashed_together) {
    const auto part = image.bytes().subspan(offset, std::min(hashed_together, image.bytes().size() - offset));
    file.read_exactly(static_cast<std::int64_t>(offset), part);
    hasher.update(part);
  }
  if (const auto checksum = hasher.hex(); checksum != facts.xxh3_128) {
    damaged(fmt::format(" with the checksum {}", checksum));
  }
  return {std::move(image), std::move(facts.run)};
}

}  // namespace gptqd::io
