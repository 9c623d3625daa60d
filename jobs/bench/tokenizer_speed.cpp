/// @file Seconds that a tokenizer takes for a text, for jobs/bench/tokenizer.sh.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "io/atomic_file.hpp"
#include "io/tokenizer.hpp"
#include "kernels/base/error.hpp"

namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

// FOLDER TEXT RUNS IDS: writes the ids as int32 to IDS; prints the seconds of the first run, which knows no word, and
// of the median of the others.
int main(int argc, char** argv) {
  if (argc != 5) {
    fmt::print(stderr, "usage: gptqd_tokenizer_speed FOLDER TEXT RUNS IDS\n");
    return 64;
  }
  try {
    const auto bytes = gptqd::io::read_file(argv[2], std::int64_t{1} << 30);
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    const auto tokenizer = gptqd::io::Tokenizer::open(argv[1]);
    int runs = 0;
    std::from_chars(argv[3], argv[3] + std::strlen(argv[3]), runs);
    std::vector<double> seconds;
    std::vector<std::int32_t> ids;
    for (int run = 0; run <= std::max(1, runs); ++run) {
      const auto start = std::chrono::steady_clock::now();
      ids = tokenizer->encode(text, gptqd::io::SpecialTokens::none);
      seconds.push_back(seconds_since(start));
    }
    gptqd::io::write_file_atomically(argv[4], std::as_bytes(std::span(ids)));
    std::sort(seconds.begin() + 1, seconds.end());
    fmt::print("{:.4f} {:.4f}\n", seconds[0], seconds[1 + (seconds.size() - 1) / 2]);
    return 0;
  } catch (const gptqd::Error& error) {
    fmt::print(stderr, "gptqd_tokenizer_speed: {}\n", error.one_line());
    return gptqd::exit_code(error.kind());
  }
}
