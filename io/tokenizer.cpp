#include "io/tokenizer.hpp"

#include <fmt/format.h>

#include <string>
#include <system_error>

#include "io/json_file.hpp"
#include "io/tokenizer/sentencepiece_model.hpp"
#include "io/tokenizer/tokenizer_json.hpp"
#include "io/tokenizer/vocab_merges.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

std::unique_ptr<Tokenizer> Tokenizer::open(const std::filesystem::path& folder) {
  const auto has = [&](const char* name) {
    std::error_code ignored;
    return std::filesystem::exists(folder / name, ignored);
  };
  if (has("tokenizer.json")) {
    const auto path = folder / "tokenizer.json";
    return tokenizer_from_json(read_json(path), path.string());
  }
  if (has("vocab.json") && has("merges.txt")) {
    return tokenizer_from_vocab_merges(folder);
  }
  if (has("tokenizer.model")) {
    return tokenizer_from_sentencepiece(folder);
  }
  const char* const half = has("vocab.json") ? "vocab.json" : has("merges.txt") ? "merges.txt" : nullptr;
  throw Error(ErrorKind::input,
              fmt::format("no tokenizer in {}: looked for tokenizer.json, vocab.json with merges.txt, and "
                          "tokenizer.model{}; copy the files of the model's tokenizer there, or give a token file as "
                          "the calibration data",
                          folder.string(), half == nullptr ? "" : fmt::format(", found {} alone", half)));
}

std::string Tokenizer::token(std::int32_t id) const { return decode(std::span(&id, 1), false); }

}  // namespace gptqd::io
