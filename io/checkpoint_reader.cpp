#include "io/checkpoint_reader.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <numeric>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "io/json_file.hpp"
#include "io/pytorch/pytorch_file.hpp"
#include "io/safetensors.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

namespace fs = std::filesystem;

/// How the folders of one format name their files.
struct FileNames {
  const char* single;
  const char* index;
};
constexpr FileNames safetensors_names{"model.safetensors", "model.safetensors.index.json"};
constexpr FileNames pytorch_names{"pytorch_model.bin", "pytorch_model.bin.index.json"};

/// True when something of that name can be seen; what cannot be looked up counts as missing.
bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

/// One or more files of one format, SafetensorsFile or PytorchFile, as one set of tensors.
template <class WeightFile>
class FilesCheckpoint : public CheckpointReader {
 public:
  FilesCheckpoint(fs::path folder, std::vector<std::string> file_names)
      : folder_(std::move(folder)), file_names_(std::move(file_names)) {
    files_.reserve(file_names_.size());
    for (const auto& name : file_names_) {
      const WeightFile& file = files_.emplace_back(folder_ / name);
      for (const auto& tensor : file.tensors()) {
        TensorInfo info = tensor;
        info.file_index = static_cast<int>(files_.size()) - 1;
        tensors_.push_back(std::move(info));
      }
    }
    for (const auto& tensor : tensors_) {
      const auto [found, is_new] = by_name_.emplace(tensor.name, &tensor);
      if (!is_new) {
        throw Error(ErrorKind::input,
                    fmt::format("{}: tensor \"{}\" lies in both {} and {}; keep one of them", folder_.string(),
                                tensor.name, file_name(*found->second), file_name(tensor)));
      }
    }
  }

  /// The name of the file that a tensor lies in.
  const std::string& file_name(const TensorInfo& info) const {
    return file_names_[static_cast<std::size_t>(info.file_index)];
  }

  const TensorInfo* find(std::string_view name) const override {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : found->second;
  }

  std::vector<std::string> names() const override {
    std::vector<std::string> result;
    result.reserve(tensors_.size());
    for (const auto& tensor : tensors_) {
      result.push_back(tensor.name);
    }
    return result;
  }

  void read_range(const TensorInfo& info, std::int64_t offset, std::span<std::byte> out) const override {
    files_.at(static_cast<std::size_t>(info.file_index)).read_range(info, offset, out);
  }

  std::vector<FileIdentity> files() const override {
    std::vector<FileIdentity> result;
    for (std::size_t i = 0; i < files_.size(); ++i) {
      result.push_back({.name = file_names_[i], .bytes = files_[i].bytes(), .header_hash = files_[i].header_hash()});
    }
    return result;
  }

  const fs::path& folder() const override { return folder_; }

 private:
  fs::path folder_;
  std::vector<std::string> file_names_;
  std::vector<WeightFile> files_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string_view, const TensorInfo*> by_name_;
};

/// The index's tensor -> file table, every file checked to be a name inside the folder.
std::map<std::string, std::string> read_weight_map(const fs::path& index) {
  const std::string where = index.string();
  const auto weight_map = get<nlohmann::json>(read_json(index), "weight_map", where);
  if (!weight_map.is_object() || weight_map.empty()) {
    throw Error(ErrorKind::input, fmt::format("{}: \"weight_map\" is no table from tensors to files", where));
  }
  std::map<std::string, std::string> result;
  for (const auto& [tensor, value] : weight_map.items()) {
    const auto file = get<std::string>(weight_map, tensor, where);
    const fs::path path(file);
    if (file.empty() || path.is_absolute() || std::find(path.begin(), path.end(), "..") != path.end()) {
      throw Error(
          ErrorKind::input,
          fmt::format("{}: tensor \"{}\" would lie in \"{}\"; expected a file inside the folder", where, tensor, file));
    }
    result.emplace(tensor, file);
  }
  return result;
}

template <class WeightFile>
std::unique_ptr<CheckpointReader> open_sharded(const fs::path& folder, const char* index_name) {
  const auto weight_map = read_weight_map(folder / index_name);
  std::vector<std::string> names;
  for (const auto& [tensor, file] : weight_map) {
    names.push_back(file);
  }
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  for (const auto& name : names) {
    if (!is_there(folder / name)) {
      throw Error(ErrorKind::input, fmt::format("{}: names the file \"{}\", which is missing; download it again",
                                                (folder / index_name).string(), name));
    }
  }
  auto reader = std::make_unique<FilesCheckpoint<WeightFile>>(folder, names);
  for (const auto& [tensor, file] : weight_map) {
    const TensorInfo* info = reader->find(tensor);
    if (info == nullptr || reader->file_name(*info) != file) {
      throw Error(
          ErrorKind::input,
          fmt::format("{}: tensor \"{}\" should lie in {}, but {}", (folder / index_name).string(), tensor, file,
                      info == nullptr ? "no file has it" : fmt::format("lies in {}", reader->file_name(*info))));
    }
  }
  return reader;
}

/// The reader of the files of one format, or null when the folder has none.
template <class WeightFile>
std::unique_ptr<CheckpointReader> open_format(const fs::path& folder, const FileNames& names) {
  if (is_there(folder / names.single)) {
    return std::make_unique<FilesCheckpoint<WeightFile>>(folder, std::vector<std::string>{names.single});
  }
  if (is_there(folder / names.index)) {
    return open_sharded<WeightFile>(folder, names.index);
  }
  return nullptr;
}

/// Levenshtein's distance.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
    }
  }
  return row.back();
}

}  // namespace

std::unique_ptr<CheckpointReader> CheckpointReader::open(const fs::path& folder) {
  if (!is_there(folder)) {
    throw Error(
        ErrorKind::input,
        fmt::format(
            "{}: no such folder, or no permission to look; give the folder that holds config.json and the weights",
            folder.string()));
  }
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored)) {
    throw Error(ErrorKind::input,
                fmt::format("{}: expected a folder with config.json and the weights, got a file", folder.string()));
  }
  if (auto reader = open_format<SafetensorsFile>(folder, safetensors_names)) {
    return reader;
  }
  if (auto reader = open_format<PytorchFile>(folder, pytorch_names)) {
    return reader;
  }
  throw Error(ErrorKind::input,
              fmt::format("{}: no weights; looked for {}, {}, {} and {}", folder.string(), safetensors_names.single,
                          safetensors_names.index, pytorch_names.single, pytorch_names.index));
}

std::optional<std::int64_t> dense_bytes(const std::vector<std::int64_t>& shape, DType dtype) {
  // An extent of 0 makes the whole 0, even where the others would overflow.
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) {
    return 0;
  }
  std::int64_t bytes = size_of(dtype);
  for (const auto extent : shape) {
    if (__builtin_mul_overflow(bytes, extent, &bytes)) {
      return std::nullopt;
    }
  }
  return bytes;
}

const TensorInfo& CheckpointReader::at(std::string_view name) const {
  const TensorInfo* info = find(name);
  if (info == nullptr) {
    throw Error(ErrorKind::input, fmt::format("{}: no tensor \"{}\"; the closest names are {}", folder().string(), name,
                                              fmt::join(closest_names(name, names()), ", ")));
  }
  return *info;
}

void CheckpointReader::read(const TensorInfo& info, std::span<std::byte> out) const {
  require(std::ssize(out) == info.bytes, "checkpoint: the buffer's size differs from the tensor's");
  read_range(info, 0, out);
}

std::vector<std::string> closest_names(std::string_view wanted, const std::vector<std::string>& names) {
  constexpr std::size_t most_names = 3;
  constexpr std::size_t longest_compared = 256;
  std::vector<std::pair<std::size_t, std::string_view>> ranked;
  for (const auto& name : names) {
    ranked.emplace_back(
        edit_distance(wanted.substr(0, longest_compared), std::string_view(name).substr(0, longest_compared)), name);
  }
  const std::size_t count = std::min(most_names, ranked.size());
  std::partial_sort(ranked.begin(), ranked.begin() + static_cast<std::ptrdiff_t>(count), ranked.end());
  std::vector<std::string> result;
  for (std::size_t i = 0; i < count; ++i) {
    result.emplace_back(ranked[i].second);
  }
  return result;
}

}  // namespace gptqd::io
