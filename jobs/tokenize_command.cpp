#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>

#include "comm/world.hpp"
#include "io/atomic_file.hpp"
#include "io/corpus/token_file.hpp"
#include "io/model_lookup.hpp"
#include "io/safetensors.hpp"
#include "io/tokenizer.hpp"
#include "jobs/commands.hpp"
#include "jobs/console.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::jobs {

namespace po = boost::program_options;

namespace {

constexpr const char* usage =
    R"(Usage: gptq-dist tokenize --model NAME|DIR --text FILE [--special] [--out FILE.safetensors [--seqlen N] | --ids]
       gptq-dist tokenize --model NAME|DIR --decode FILE [--skip-special]

What the model's tokenizer makes of a text: counts and the first tokens, all ids, or a file of ids for --calibration; or
the text of ids. Needs neither MPI nor a GPU. FILE may be -, for standard input.
)";

constexpr std::int64_t most_bytes = std::numeric_limits<std::int32_t>::max() - std::int64_t{1};
constexpr std::size_t tokens_shown = 20;

using Ids = std::vector<std::int32_t>;

std::string read_all(const std::string& name) {
  if (name == "-") {
    std::string text;
    std::array<char, 1 << 16> chunk{};
    while (std::cin.read(chunk.data(), chunk.size()) || std::cin.gcount() > 0) {
      text.append(chunk.data(), static_cast<std::size_t>(std::cin.gcount()));
      if (static_cast<std::int64_t>(text.size()) > most_bytes) {
        throw Error(ErrorKind::input, "standard input has 2 GiB and more; give a part of it");
      }
    }
    return text;
  }
  const auto bytes = io::read_file(name, most_bytes);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// Ids of a text of numbers with white space or commas between them.
Ids parse_ids(std::string_view text, const std::string& name) {
  Ids ids;
  constexpr std::string_view separators = " \t\r\n,";
  for (auto begin = text.find_first_not_of(separators); begin != std::string_view::npos;
       begin = text.find_first_not_of(separators, begin)) {
    const auto end = std::min(text.find_first_of(separators, begin), text.size());
    const auto word = text.substr(begin, end - begin);
    std::int32_t id = 0;
    const auto result = std::from_chars(word.data(), word.data() + word.size(), id);
    if (result.ec != std::errc() || result.ptr != word.data() + word.size() || id < 0) {
      throw Error(
          ErrorKind::input,
          fmt::format("{}: \"{}\" is no token id; expected numbers from 0 to {} with blanks, commas or line ends "
                      "between them",
                      name, word.substr(0, 40), std::numeric_limits<std::int32_t>::max()));
    }
    ids.push_back(id);
    begin = end;
  }
  return ids;
}

void write_out(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

void decode(const io::Tokenizer& tokenizer, const std::string& name, bool skip_special) {
  if (io::is_token_file(name)) {
    const auto windows = io::read_token_file(name);
    for (std::int64_t sample = 0; sample < windows.samples; ++sample) {
      write_out((sample == 0 ? "" : "\n") + tokenizer.decode(windows.window(sample), skip_special));
    }
  } else {
    write_out(tokenizer.decode(parse_ids(read_all(name), name), skip_special));
  }
}

void write_ids(const std::string& path, const Ids& ids, std::int64_t seqlen) {
  const auto count = static_cast<std::int64_t>(ids.size());
  const auto rows = count / seqlen;
  if (rows == 0) {
    throw Error(ErrorKind::input, fmt::format("the text has {} tokens, fewer than a row of {}; give a longer text or a "
                                              "smaller --seqlen",
                                              count, seqlen));
  }
  io::SafetensorsWriter writer(path, {{.name = "input_ids", .dtype = DType::i32, .shape = {rows, seqlen}}});
  writer.append("input_ids", std::as_bytes(std::span(ids).first(static_cast<std::size_t>(rows * seqlen))));
  writer.commit();
  fmt::print("input_ids [{}, {}] -> {}\n", rows, seqlen, path);
}

void show(const io::Tokenizer& tokenizer, const Ids& ids) {
  for (const auto id : std::span(ids).first(std::min(ids.size(), tokens_shown))) {
    fmt::print("{:>8}  {}\n", id, nlohmann::json(tokenizer.token(id)).dump());
  }
  if (ids.size() > tokens_shown) {
    fmt::print("     ...  {} more; --ids prints all ids\n", ids.size() - tokens_shown);
  }
}

}  // namespace

int tokenize_command(const Arguments& arguments) {
  CommandLine line("tokenize", usage);
  po::options_description options("Tokenize", 100, 50);
  options.add_options()("model", po::value<std::string>()->value_name("NAME|DIR"),
                        "folder with tokenizer.json, vocab.json and merges.txt, or tokenizer.model")(
      "text", po::value<std::string>()->value_name("FILE"), "text to tokenize, as it is")(
      "special", po::bool_switch(), "with the tokens that the tokenizer puts around a text (<s>, </s>)")(
      "ids", po::bool_switch(), "print all ids in one line, and nothing else")(
      "out", po::value<std::string>()->value_name("FILE"), "write input_ids, I32 [rows, N], as safetensors")(
      "seqlen", po::value<std::int64_t>()->value_name("N"),
      "tokens a row of --out, what is left over is left out; default: all in one row")(
      "decode", po::value<std::string>()->value_name("FILE"),
      "ids to turn into text: numbers, or input_ids (.safetensors, .npy), a line a row")(
      "skip-special", po::bool_switch(), "leave special tokens out of the text");
  line.add(options);
  if (!line.parse(arguments)) {
    return 0;
  }
  if (!line.has("model") || line.has("text") == line.has("decode")) {
    throw Error(ErrorKind::usage, "--model and one of --text and --decode are needed; see gptq-dist tokenize --help");
  }
  for (const char* option : {"special", "ids", "out", "seqlen"}) {
    if (line.has("decode") && line.given(option)) {
      throw Error(ErrorKind::usage, fmt::format("--{} goes with --text, not with --decode", option));
    }
  }
  if (line.has("text") && line.flag("skip-special")) {
    throw Error(ErrorKind::usage, "--skip-special goes with --decode, not with --text");
  }
  if (line.has("seqlen") && (!line.has("out") || line.get<std::int64_t>("seqlen") < 1)) {
    throw Error(ErrorKind::usage, "--seqlen goes with --out, and is at least 1");
  }
  if (line.has("out") && line.flag("ids")) {
    throw Error(ErrorKind::usage, "--out and --ids exclude one another");
  }
  if (comm::launcher_rank() != 0) {
    return 0;  // started under mpirun: one process is enough
  }
  const auto tokenizer = io::Tokenizer::open(io::find_model(line.get<std::string>("model")));
  if (line.has("decode")) {
    decode(*tokenizer, line.get<std::string>("decode"), line.flag("skip-special"));
    return 0;
  }
  const auto& name = line.get<std::string>("text");
  const auto text = read_all(name);
  const auto start = std::chrono::steady_clock::now();
  const auto ids = with_context(fmt::format("tokenizing {}", name), [&] {
    return tokenizer->encode(text, line.flag("special") ? io::SpecialTokens::add : io::SpecialTokens::none);
  });
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  if (line.flag("ids")) {
    fmt::print("{}\n", fmt::join(ids, " "));
    return 0;
  }
  fmt::print("{} bytes, {} tokens of {} ids, {:.3f} s\n", text.size(), ids.size(), tokenizer->vocab_size(),
             seconds.count());
  if (line.has("out")) {
    const auto seqlen = line.has("seqlen") ? line.get<std::int64_t>("seqlen")
                                           : std::max<std::int64_t>(1, static_cast<std::int64_t>(ids.size()));
    write_ids(line.get<std::string>("out"), ids, seqlen);
  } else {
    show(*tokenizer, ids);
  }
  return 0;
}

}  // namespace gptqd::jobs
