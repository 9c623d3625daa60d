#include "pipeline/calibration.hpp"

#include <algorithm>
#include <functional>

namespace gptqd::pipeline {

namespace {

constexpr std::int64_t default_samples = 128;
constexpr std::int64_t default_seqlen = 2048;

/// Rank 0 makes the windows, checks them against the model, and all ranks get them.
io::TokenWindows shared_windows(comm::World& world, const ModelSpec& model, const std::filesystem::path& file,
                                const std::function<io::TokenWindows()>& make) {
  io::TokenWindows windows;
  if (world.rank() == 0) {
    const auto step = world.long_host_step(fmt::format("reading {}", file.string()));
    windows = with_context(fmt::format("reading tokens from {}", file.string()), make);
    if (windows.seqlen > model.max_positions) {
      throw Error(ErrorKind::usage,
                  fmt::format("{}: windows of {} tokens, the model has {} positions; give --seqlen {} or less",
                              file.string(), windows.seqlen, model.max_positions, model.max_positions));
    }
    io::check_vocabulary(windows, model.vocabulary, file.string());
  }
  auto& group = world.group();
  windows.samples = group.broadcast_value(windows.samples, 0, "number of windows");
  windows.seqlen = group.broadcast_value(windows.seqlen, 0, "length of windows");
  windows.ids.resize(static_cast<std::size_t>(windows.samples * windows.seqlen));
  group.broadcast(std::as_writable_bytes(std::span(windows.ids)), 0, "token ids");
  return windows;
}

std::int64_t window_length(const std::optional<std::int64_t>& asked, const ModelSpec& model) {
  return asked.value_or(std::min(default_seqlen, model.max_positions));
}

}  // namespace

io::TokenWindows calibration_windows(comm::World& world, const ModelSpec& model,
                                     const std::filesystem::path& model_folder, const CalibrationRequest& request) {
  return shared_windows(world, model, request.file, [&] {
    if (io::is_token_file(request.file)) {
      const auto all = io::read_token_file(request.file);
      return io::take(all, request.samples.value_or(std::min(default_samples, all.samples)),
                      request.seqlen.value_or(all.seqlen), request.file.string());
    }
    const auto tokens = io::read_text_tokens(*io::Tokenizer::open(model_folder), request.file, io::SpecialTokens::add);
    return io::draw_windows(tokens, request.samples.value_or(default_samples), window_length(request.seqlen, model),
                            request.seed, request.file.string());
  });
}

io::TokenWindows evaluation_windows(comm::World& world, const ModelSpec& model,
                                    const std::filesystem::path& model_folder, const EvaluationRequest& request) {
  return shared_windows(world, model, request.file, [&] {
    if (io::is_token_file(request.file)) {
      const auto all = io::read_token_file(request.file);
      const auto samples = request.windows > 0 ? std::min(request.windows, all.samples) : all.samples;
      return io::take(all, samples, request.seqlen.value_or(all.seqlen), request.file.string());
    }
    const auto tokens = io::read_text_tokens(*io::Tokenizer::open(model_folder), request.file, io::SpecialTokens::none);
    return io::sequential_windows(tokens, window_length(request.seqlen, model), request.windows, request.file.string());
  });
}

}  // namespace gptqd::pipeline
