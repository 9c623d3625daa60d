// Pipelines that no model has, made at random from all supported parts: ids and texts are those of Hugging Face
// tokenizers 0.23.3 for the same settings (tests/golden/tokenizers/pipelines.json).
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "io/json_file.hpp"
#include "io/tokenizer.hpp"
#include "io/tokenizer/tokenizer_json.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::io {
namespace {

using gptqd::test::source_path;
using nlohmann::json;
using Ids = std::vector<std::int32_t>;

json golden_json(const std::string& name) {
  return read_json(source_path("tests/golden/tokenizers/" + name + "/tokenizer.json"));
}

TEST(TokenizerPipelines, GiveTheReferencesIdsAndTexts) {
  const auto pipelines = read_json(source_path("tests/golden/tokenizers/pipelines.json"));
  ASSERT_EQ(pipelines.size(), 80u);
  std::map<std::string, json> bases;
  int cases = 0;

  for (const auto& pipeline : pipelines) {
    const auto base = pipeline["base"].get<std::string>();
    if (bases.count(base) == 0) {
      bases[base] = golden_json(base);
    }
    auto file = bases[base];
    file.update(pipeline["settings"]);
    file["model"].update(pipeline["model"]);
    for (const auto& token : pipeline["without"]) {
      file["model"]["vocab"].erase(token.get<std::string>());
    }
    auto& added = file["added_tokens"];
    added.erase(std::remove_if(added.begin(), added.end(),
                               [&](const json& token) {
                                 const auto& gone = pipeline["not_added"];
                                 return std::find(gone.begin(), gone.end(), token["content"]) != gone.end();
                               }),
                added.end());
    added.insert(added.end(), pipeline["added"].begin(), pipeline["added"].end());
    const auto tokenizer = tokenizer_from_json(file, base);
    for (const auto& expected : pipeline["cases"]) {
      const auto ids = tokenizer->encode(expected["text"].get<std::string>(), SpecialTokens::add);
      EXPECT_EQ(ids, expected["ids"].get<Ids>()) << base << pipeline["settings"] << expected["text"];
      EXPECT_EQ(tokenizer->decode(ids, false), expected["decoded"].get<std::string>())
          << base << pipeline["settings"] << expected["text"];
      ++cases;
    }
  }
  EXPECT_GT(cases, 200);
}

}  // namespace
}  // namespace gptqd::io
