#include "io/tokenizer.hpp"

#include <system_error>

#include "io/json_file.hpp"
#include "io/tokenizer/tokenizer_json.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

std::unique_ptr<Tokenizer> Tokenizer::open(const std::filesystem::path& folder) {
  const auto path = folder / "tokenizer.json";
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    std::string found;
    for (const auto* other : {"vocab.json", "merges.txt", "tokenizer.model"}) {
      if (std::filesystem::exists(folder / other, ignored)) {
        found += fmt::format("{}{}", found.empty() ? "" : ", ", other);
      }
    }
    throw Error(
        ErrorKind::input,
        fmt::format("no tokenizer in {}: looked for tokenizer.json{}; copy the tokenizer.json of the model there "
                    "(transformers writes one: AutoTokenizer.from_pretrained(...).save_pretrained(...)), or "
                    "give a token file as the calibration data",
                    folder.string(),
                    found.empty() ? "" : fmt::format(" and found {}, which cannot be read yet", found)));
  }
  return tokenizer_from_json(read_json(path), path.string());
}

}  // namespace gptqd::io
