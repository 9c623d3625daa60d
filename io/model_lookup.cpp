#include "io/model_lookup.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <iomanip>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

namespace fs = std::filesystem;

/// Short names, lower case, and the repositories they stand for.
constexpr std::array<std::pair<std::string_view, std::string_view>, 38> aliases{{
    {"bloom", "bigscience/bloom"},
    {"bloom-176b", "bigscience/bloom"},
    {"bloom-7b1", "bigscience/bloom-7b1"},
    {"bloom-7.1b", "bigscience/bloom-7b1"},
    {"bloom-3b", "bigscience/bloom-3b"},
    {"bloom-1b7", "bigscience/bloom-1b7"},
    {"bloom-1.7b", "bigscience/bloom-1b7"},
    {"bloom-1b1", "bigscience/bloom-1b1"},
    {"bloom-1.1b", "bigscience/bloom-1b1"},
    {"bloom-560m", "bigscience/bloom-560m"},
    {"opt-125m", "facebook/opt-125m"},
    {"opt-350m", "facebook/opt-350m"},
    {"opt-1.3b", "facebook/opt-1.3b"},
    {"opt-2.7b", "facebook/opt-2.7b"},
    {"opt-6.7b", "facebook/opt-6.7b"},
    {"opt-13b", "facebook/opt-13b"},
    {"opt-30b", "facebook/opt-30b"},
    {"opt-66b", "facebook/opt-66b"},
    {"llama-7b", "huggyllama/llama-7b"},
    {"llama-13b", "huggyllama/llama-13b"},
    {"llama-30b", "huggyllama/llama-30b"},
    {"llama-65b", "huggyllama/llama-65b"},
    {"llama-2-7b", "meta-llama/Llama-2-7b-hf"},
    {"llama-2-13b", "meta-llama/Llama-2-13b-hf"},
    {"llama-2-70b", "meta-llama/Llama-2-70b-hf"},
    {"llama-3-8b", "meta-llama/Meta-Llama-3-8B"},
    {"llama-3-70b", "meta-llama/Meta-Llama-3-70B"},
    {"llama-3.1-8b", "meta-llama/Llama-3.1-8B"},
    {"llama-3.1-70b", "meta-llama/Llama-3.1-70B"},
    {"llama-3.1-405b", "meta-llama/Llama-3.1-405B"},
    {"mistral-7b", "mistralai/Mistral-7B-v0.1"},
    {"mixtral-8x7b", "mistralai/Mixtral-8x7B-v0.1"},
    {"qwen2-7b", "Qwen/Qwen2-7B"},
    {"qwen3-8b", "Qwen/Qwen3-8B"},
    {"qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B"},
    {"deepseek-v3", "deepseek-ai/DeepSeek-V3"},
    {"smollm2-135m", "HuggingFaceTB/SmolLM2-135M"},
    {"smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B"},
}};

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool is_folder(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

/// `name`, and the repository it is an alias of.
std::vector<std::string> names_of(const std::string& name) {
  std::vector<std::string> names{name};
  std::string lower = name;
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  for (const auto& [alias, repository] : aliases) {
    if (alias == lower) {
      names.emplace_back(repository);
    }
  }
  return names;
}

std::vector<fs::path> cache_folders() {
  std::vector<fs::path> folders;
  const auto add = [&folders](const char* variable, const char* below) {
    if (const auto value = environment(variable); !value.empty()) {
      if (auto folder = fs::path(value) / below; std::find(folders.begin(), folders.end(), folder) == folders.end()) {
        folders.push_back(std::move(folder));
      }
    }
  };
  add("HF_HUB_CACHE", "");
  add("HUGGINGFACE_HUB_CACHE", "");
  add("HF_HOME", "hub");
  add("XDG_CACHE_HOME", "huggingface/hub");
  add("HOME", ".cache/huggingface/hub");
  return folders;
}

/// models--ORG--NAME, the folder of a repository in the cache.
std::string cache_name(const std::string& repository) {
  std::string result = "models--";
  for (const char c : repository) {
    if (c == '/') {
      result += "--";
    } else {
      result += c;
    }
  }
  return result;
}

/// What refs/main of a repository in the cache says: a commit's hash. Empty when there is none.
std::string main_commit(const fs::path& repository) {
  constexpr int longest = 64;
  std::ifstream file(repository / "refs" / "main");
  std::string hash;
  file >> std::setw(longest + 1) >> hash;
  const bool plain = hash.size() <= std::size_t{longest} && std::all_of(hash.begin(), hash.end(), [](char c) {
                       return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
                     });
  return plain ? hash : "";
}

/// What to say of a repository's place in the cache that gave no snapshot: nothing when the repository is not there.
std::string why_not(const fs::path& repository, const std::string& commit) {
  if (!is_folder(repository)) {
    return "";
  }
  std::vector<std::string> snapshots;
  std::error_code error;
  for (fs::directory_iterator entry(repository / "snapshots", error), end; !error && entry != end;
       entry.increment(error)) {
    snapshots.push_back(entry->path().filename().string());
  }
  std::sort(snapshots.begin(), snapshots.end());
  snapshots.resize(std::min<std::size_t>(snapshots.size(), 3));
  return fmt::format(" (the repository is there, but {}{})",
                     commit.empty() ? "it has no refs/main" : "not the snapshot of its refs/main",
                     snapshots.empty() ? ""
                                       : fmt::format("; give the folder of one of snapshots/{}",
                                                     fmt::join(snapshots, ", snapshots/")));
}

}  // namespace

fs::path find_model(const std::string& name) {
  if (name.empty()) {
    throw Error(ErrorKind::input, "the model's name is empty; give a folder or a name");
  }
  std::vector<std::string> looked;
  if (is_folder(name)) {
    return name;
  }
  std::error_code ignored;
  looked.push_back(fs::exists(name, ignored) ? fmt::format("{} (a file, expected the folder it lies in)", name) : name);

  const auto names = names_of(name);
  const auto own = environment("GPTQ_DIST_MODELS");
  for (std::size_t begin = 0; begin < own.size();) {
    const auto end = std::min(own.find(':', begin), own.size());
    if (end > begin) {
      const fs::path folder = own.substr(begin, end - begin);
      for (const auto& each : names) {
        if (is_folder(folder / each)) {
          return folder / each;
        }
        looked.push_back((folder / each).string());
      }
    }
    begin = end + 1;
  }
  if (own.empty()) {
    looked.emplace_back("$GPTQ_DIST_MODELS (not set)");
  }

  for (const auto& folder : cache_folders()) {
    for (const auto& each : names) {
      const auto repository = folder / cache_name(each);
      const auto commit = main_commit(repository);
      const auto snapshot = repository / "snapshots" / (commit.empty() ? "HASH of refs/main" : commit);
      if (!commit.empty() && is_folder(snapshot)) {
        return snapshot;
      }
      looked.push_back(snapshot.string() + why_not(repository, commit));
    }
  }
  throw Error(
      ErrorKind::input,
      fmt::format("model {} was not found; looked for the folders\n  {}\nGive the folder's path, or download the "
                  "model first (hf download {})",
                  name, fmt::join(looked, "\n  "), names.back()));
}

}  // namespace gptqd::io
