#include "pipeline/calibration.hpp"

#include <algorithm>
#include <map>
#include <memory>
#include <span>

#include "io/corpus/token_file.hpp"

namespace gptqd::pipeline {

namespace {

constexpr std::int64_t default_samples = 128;
constexpr std::int64_t default_seqlen = 2048;

/// The sources on the rank that reads them: token files, and the tokenizer where there is a text.
class Sources {
 public:
  Sources(const std::vector<io::TextSource>& sources, const std::filesystem::path& model_folder)
      : sources_(sources), model_folder_(model_folder) {
    require(!sources.empty(), "no text to take windows from");
    for (const auto& source : sources) {
      if (io::is_token_file(source.file) && !token_files_.contains(source.file)) {
        token_files_.emplace(source.file, io::read_token_file(source.file));
      }
    }
  }

  /// Of all windows.
  std::int64_t window_length(const std::optional<std::int64_t>& asked, const ModelSpec& model) const {
    std::optional<std::int64_t> shortest;
    for (const auto& [unused, windows] : token_files_) {
      shortest = std::min(shortest.value_or(windows.seqlen), windows.seqlen);
    }
    return asked.value_or(shortest.value_or(std::min(default_seqlen, model.max_positions)));
  }

  /// The windows of a token file, or null for a text.
  const io::TokenWindows* token_file(const io::TextSource& source) const {
    const auto found = token_files_.find(source.file);
    return found == token_files_.end() ? nullptr : &found->second;
  }

  const io::Tokenizer& tokenizer() {
    if (!tokenizer_) {
      tokenizer_ = io::Tokenizer::open(model_folder_);
    }
    return *tokenizer_;
  }

  /// Runs `make` for each source, checks its windows against the model, and returns them.
  template <class Make>
  std::vector<io::TokenWindows> collect(const ModelSpec& model, Make&& make) {
    std::vector<io::TokenWindows> all;
    for (std::size_t i = 0; i < sources_.size(); ++i) {
      const auto name = sources_[i].name();
      auto windows = with_context(fmt::format("reading tokens from {}", name), [&] { return make(i); });
      if (windows.seqlen > model.max_positions) {
        throw Error(ErrorKind::usage,
                    fmt::format("{}: windows of {} tokens, the model has {} positions; give --seqlen {} or less", name,
                                windows.seqlen, model.max_positions, model.max_positions));
      }
      io::check_vocabulary(windows, model.vocabulary, name);
      all.push_back(std::move(windows));
    }
    return all;
  }

 private:
  const std::vector<io::TextSource>& sources_;
  const std::filesystem::path& model_folder_;
  std::map<std::filesystem::path, io::TokenWindows> token_files_;
  std::unique_ptr<io::Tokenizer> tokenizer_;
};

/// Rank 0's windows on all ranks. Collective.
void share(comm::Group& group, io::TokenWindows& windows) {
  windows.samples = group.broadcast_value(windows.samples, 0, "number of windows");
  windows.seqlen = group.broadcast_value(windows.seqlen, 0, "length of windows");
  windows.ids.resize(static_cast<std::size_t>(windows.samples * windows.seqlen));
  group.broadcast(std::as_writable_bytes(std::span(windows.ids)), 0, "token ids");
}

io::TokenWindows joined(const std::vector<io::TokenWindows>& parts) {
  io::TokenWindows all{.samples = 0, .seqlen = parts.front().seqlen, .ids = {}};
  for (const auto& part : parts) {
    all.samples += part.samples;
    all.ids.insert(all.ids.end(), part.ids.begin(), part.ids.end());
  }
  return all;
}

io::TokenWindows read_calibration(const ModelSpec& model, const std::filesystem::path& model_folder,
                                  const CalibrationRequest& request) {
  Sources sources(request.sources, model_folder);
  const auto count = std::ssize(request.sources);
  const auto* only = count == 1 ? sources.token_file(request.sources.front()) : nullptr;
  const auto samples =
      request.samples.value_or(only == nullptr ? default_samples : std::min(default_samples, only->samples));
  if (samples < count) {
    throw Error(ErrorKind::usage, fmt::format("--samples {}: fewer than the {} calibration texts, each of which gives "
                                              "at least one",
                                              samples, count));
  }
  const auto seqlen = sources.window_length(request.seqlen, model);
  return joined(sources.collect(model, [&](std::size_t i) {
    const auto& source = request.sources[i];
    const auto own = samples / count + (static_cast<std::int64_t>(i) < samples % count ? 1 : 0);
    if (const auto* file = sources.token_file(source)) {
      return io::take(*file, own, seqlen, source.name());
    }
    return io::calibration_text_windows(sources.tokenizer(), source,
                                        {.samples = own,
                                         .seqlen = seqlen,
                                         .seed = request.seed,
                                         .sampling = request.sampling,
                                         .documents = request.documents});
  }));
}

std::vector<io::TokenWindows> read_evaluation(const ModelSpec& model, const std::filesystem::path& model_folder,
                                              const EvaluationRequest& request) {
  Sources sources(request.sources, model_folder);
  const auto seqlen = sources.window_length(request.seqlen, model);
  return sources.collect(model, [&](std::size_t i) {
    const auto& source = request.sources[i];
    if (const auto* file = sources.token_file(source)) {
      const auto samples = request.windows > 0 ? std::min(request.windows, file->samples) : file->samples;
      return io::take(*file, samples, seqlen, source.name());
    }
    return io::evaluation_text_windows(sources.tokenizer(), source, seqlen, request.windows);
  });
}

}  // namespace

io::TokenWindows calibration_windows(comm::World& world, const ModelSpec& model,
                                     const std::filesystem::path& model_folder, const CalibrationRequest& request) {
  io::TokenWindows windows;
  if (world.rank() == 0) {
    const auto step = world.long_host_step("reading the calibration text");
    windows = read_calibration(model, model_folder, request);
  }
  share(world.group(), windows);
  return windows;
}

std::vector<io::TokenWindows> evaluation_windows(comm::World& world, const ModelSpec& model,
                                                 const std::filesystem::path& model_folder,
                                                 const EvaluationRequest& request) {
  std::vector<io::TokenWindows> windows(request.sources.size());
  if (world.rank() == 0) {
    const auto step = world.long_host_step("reading the evaluation text");
    windows = read_evaluation(model, model_folder, request);
  }
  for (auto& each : windows) {
    share(world.group(), each);
  }
  return windows;
}

}  // namespace gptqd::pipeline
