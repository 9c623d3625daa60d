#include "io/artifact/companions.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <system_error>

#include "io/atomic_file.hpp"
#include "io/checksum.hpp"
#include "io/json_file.hpp"

namespace gptqd::io {

namespace {

namespace fs = std::filesystem;

constexpr std::int64_t chunk_bytes = std::int64_t{8} << 20;

// The files besides weights and configuration that engines and tokenizers look for.
constexpr std::array companion_files{
    "generation_config.json", "tokenizer.json",          "tokenizer_config.json", "vocab.json", "merges.txt",
    "tokenizer.model",        "special_tokens_map.json", "added_tokens.json"};

}  // namespace

ArtifactFile write_provenance(ArtifactFormat format, const ArtifactContent& content, const fs::path& folder) {
  const nlohmann::json provenance = {{"format", name_of(format)}, {"facts", content.facts}};
  return write_text_file(folder / provenance_file, provenance.dump(2) + "\n");
}

std::optional<nlohmann::json> read_provenance(const fs::path& folder) {
  std::error_code ignored;
  const fs::path path = folder / provenance_file;
  if (!fs::exists(path, ignored)) {
    return std::nullopt;
  }
  auto provenance = read_json(path);
  get<std::string>(provenance, "format", path.string());
  if (!get<nlohmann::json>(provenance, "facts", path.string()).is_object()) {
    throw Error(ErrorKind::input, fmt::format("{}: \"facts\" is no object", path.string()));
  }
  return provenance;
}

std::set<fs::path> companions(const fs::path& folder) {
  std::set<fs::path> result;
  std::error_code code;
  for (auto entry = fs::directory_iterator(folder, code); !code && entry != fs::directory_iterator();
       entry.increment(code)) {
    std::error_code ignored;
    const std::string name = entry->path().filename().string();
    const bool wanted = std::find(companion_files.begin(), companion_files.end(), name) != companion_files.end() ||
                        name.starts_with("chat_template.") || name.starts_with("LICENSE") ||
                        entry->path().extension() == ".py";
    if (wanted && entry->is_regular_file(ignored)) {
      result.insert(entry->path());
    }
  }
  if (code) {
    throw Error(ErrorKind::io, fmt::format("cannot list {}: {}", folder.string(), code.message()));
  }
  return result;
}

ArtifactFile write_text_file(const fs::path& path, const std::string& text) {
  AtomicFile file(path, Durable::with_its_folder);
  file.append(std::as_bytes(std::span(text)));
  file.commit();
  return {.name = path.filename().string(),
          .bytes = std::ssize(text),
          .xxh3_128 = xxh3_128_hex(std::as_bytes(std::span(text)))};
}

ArtifactFile copy_companion(const fs::path& from, const fs::path& folder) {
  const File source(from);
  AtomicFile target(folder / from.filename(), Durable::with_its_folder);
  Hasher hasher;
  std::vector<std::byte> chunk(static_cast<std::size_t>(std::min(chunk_bytes, source.size())));
  for (std::int64_t offset = 0; offset < source.size();) {
    const auto part = std::span(chunk).first(static_cast<std::size_t>(std::min(chunk_bytes, source.size() - offset)));
    source.read_exactly(offset, part);
    hasher.update(part);
    target.append(part);
    offset += std::ssize(part);
  }
  target.commit();
  return {.name = from.filename().string(), .bytes = source.size(), .xxh3_128 = hasher.hex()};
}

}  // namespace gptqd::io
