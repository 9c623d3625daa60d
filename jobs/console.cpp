#include "jobs/console.hpp"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <array>

namespace gptqd::jobs {

namespace {

spdlog::logger& logger() {
  static const auto instance = [] {
    auto made = std::make_shared<spdlog::logger>("gptq-dist", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("[%H:%M:%S] %v");
    return made;
  }();
  return *instance;
}

std::string describe(const pipeline::BlockProgress& progress) {
  const std::string what = progress.replayed ? "replayed"
                           : progress.loss_ratio
                               ? fmt::format("loss {:.3f} of round-to-nearest's", *progress.loss_ratio)
                               : "quantized";
  return fmt::format("block {} of {}: {}, {}; {} left", progress.block + 1, progress.blocks, what,
                     human_seconds(progress.seconds), human_seconds(progress.eta_seconds));
}

void draw_bar(const pipeline::BlockProgress& progress) {
  constexpr std::int64_t width = 30;
  const std::int64_t filled = width * progress.done / std::max<std::int64_t>(1, progress.to_do);
  fmt::print(stderr, "\r\033[K[{:#<{}}{:.<{}}] {}{}", "", filled, "", width - filled, describe(progress),
             progress.done == progress.to_do ? "\n" : "");
  std::fflush(stderr);
}

}  // namespace

void note(const std::string& line) { logger().info(line); }

pipeline::RunObserver console_observer() {
  const bool terminal = isatty(STDERR_FILENO) != 0;
  return {.note = note, .block = [terminal](const pipeline::BlockProgress& progress) {
            if (terminal) {
              draw_bar(progress);
            } else {
              note(describe(progress));
            }
          }};
}

std::string human_bytes(std::int64_t bytes) {
  constexpr std::array units{"B", "kB", "MB", "GB", "TB", "PB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1000 && unit + 1 < units.size()) {
    value /= 1000;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.2f} {}", value, units[unit]);
}

}  // namespace gptqd::jobs
