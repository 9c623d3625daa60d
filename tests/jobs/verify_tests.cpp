/// @file The command verify, mixed settings, and what verify and eval say to artifacts that are not what they should
/// be.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/jobs/gptq_dist.hpp"

namespace gptqd::jobs::test {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

const Options mixed{{"--model", demo_model("llama-7m")},
                    {"--override", "down_proj=bits:8,group:32"},
                    {"--skip", "layers\\.1\\."},
                    {"--last-blocks", "1=bits:3,sym:false"}};

nlohmann::json json_of(const fs::path& path) { return nlohmann::json::parse(read_text(path)); }

class Verify : public ::testing::Test {
 protected:
  CommandResult verify(const fs::path& artifact, Words more = {}) {
    more.insert(more.begin(), {"verify", artifact});
    return gptq_dist(1, more);
  }

  TemporaryFolder folder_;
  fs::path out_ = folder_ / "out";
};

TEST_F(Verify, ASoundArtifactPassesAndItsPerplexitiesGoToTheCard) {
  expect_success(1, quick_run(out_));
  const auto before = checksums(out_);

  const Words options{"--against", demo_model(),
                      "--text",    source_path("jobs/demo/eval.txt"),
                      "--seqlen",  "128",
                      "--windows", "8",
                      "--json",    folder_ / "report.json"};
  const auto result = verify(out_, options);

  EXPECT_EQ(result.code, 0) << result.out << result.err;
  EXPECT_THAT(result.out, HasSubstr("every check passed"));
  EXPECT_EQ(checksums(out_), before);
  const auto report = json_of(folder_ / "report.json");
  EXPECT_EQ(report.at("verdict"), "pass");
  EXPECT_EQ(report.at("layers").size(), 36u);
  EXPECT_GT(report.at("perplexity").at(0).at("source_perplexity"), 1);
  EXPECT_THAT(read_text(out_ / "README.md"), AllOf(HasSubstr("| 5 |"), Not(HasSubstr("## Perplexity"))));

  auto with_card = options;
  with_card.push_back("--card");
  EXPECT_EQ(verify(out_, with_card).code, 0);
  EXPECT_THAT(read_text(out_ / "README.md"), HasSubstr("## Perplexity"));
}

TEST_F(Verify, TheVerdictIsTheExitCode) {
  expect_success(1, quick_run(out_));
  const Words text{"--text", source_path("jobs/demo/eval.txt"), "--seqlen", "128", "--windows", "4"};

  auto strict = text;
  strict.insert(strict.end(), {"--against", demo_model(), "--max-increase", "0"});
  const auto too_much = verify(out_, strict);
  EXPECT_EQ(too_much.code, 65);
  EXPECT_THAT(too_much.out, HasSubstr("fail     perplexity"));

  auto config = read_text(out_ / "config.json");
  const std::string said = "\"checkpoint_format\": \"gptq\"";
  write_text(out_ / "config.json",
             config.replace(config.find(said), said.size(), "\"checkpoint_format\": \"gptq_v2\""));
  const auto wrong = verify(out_, text);
  EXPECT_EQ(wrong.code, 65);
  EXPECT_THAT(wrong.out, AllOf(HasSubstr("fail     zeros"), HasSubstr("skipped  perplexity")));
  EXPECT_EQ(verify(demo_model()).code, 65);
  EXPECT_EQ(verify(out_, {"--tp", "0"}).code, 64);
  EXPECT_EQ(verify(out_, {"--card"}).code, 64);
  EXPECT_EQ(gptq_dist(1, Words{"verify"}).code, 64);
}

TEST_F(Verify, MixedSettingsGiveTheSameBytesOnAnyRanksAfterARestartAndBackFromOtherFormats) {
  expect_success(1, quick_run(out_, mixed));
  const auto bytes = bytes_of_run(out_);
  const auto other = folder_ / "other";

  expect_success(3, quick_run(other, mixed));
  EXPECT_EQ(bytes_of_run(other), bytes);

  fs::remove_all(out_);
  for (const char* name : {"block_00001", "block_00003"}) {
    fs::remove(work_of(out_) / "shards" / (name + std::string(".h5")));
  }
  expect_success(2, quick_run(out_, mixed));
  EXPECT_EQ(bytes_of_run(out_), bytes);
  EXPECT_EQ(report_of(out_).at("blocks").at("computed"), 2);

  const auto config = json_of(out_ / "config.json").at("quantization_config");
  EXPECT_EQ(config.at("checkpoint_format"), "gptq_v2");
  EXPECT_EQ(config.at("dynamic").size(), 4u);  // skipped, down_proj, the last block, and its down_proj
  EXPECT_EQ(verify(out_, {"--against", demo_model("llama-7m")}).code, 0);

  const auto packed = folder_ / "packed";
  const auto back = folder_ / "back";
  ASSERT_EQ(gptq_dist(1, Words{"convert", out_, "--to", "compressed-tensors", "--out", packed}).code, 0);
  EXPECT_EQ(verify(packed, {"--against", demo_model("llama-7m")}).code, 0);
  ASSERT_EQ(gptq_dist(1, Words{"convert", packed, "--to", "gptq_v2", "--out", back}).code, 0);
  EXPECT_EQ(read_text(back / "model.safetensors"), read_text(out_ / "model.safetensors"));
  EXPECT_EQ(json_of(back / "config.json"), json_of(out_ / "config.json"));

  fs::remove_all(out_);
  auto changed = mixed;
  changed["--skip"] = "layers\\.2\\.";
  const auto another = gptq_dist(1, quick_run(out_, changed));
  EXPECT_EQ(another.code, 65);
  EXPECT_THAT(another.err, HasSubstr("layers.model.layers.1.mlp.up_proj"));
}

TEST_F(Verify, RulesThatCannotBeMeantAreRefusedBeforeAnythingIsMade) {
  for (const auto& [option, value] :
       std::vector<std::pair<std::string, std::string>>{{"--override", "q_proj=bits:8"},
                                                        {"--override", "nothing=bits:8"},
                                                        {"--override", "fc1=bits:8,group:56"},
                                                        {"--skip", "("},
                                                        {"--first-blocks", "2=bits:7"}}) {
    const auto result = gptq_dist(1, quick_run(out_, {{option, value}}));

    EXPECT_EQ(result.code, 64) << value << "\n" << result.err;
    EXPECT_FALSE(fs::exists(work_of(out_))) << value;
  }
}

/// eval and verify answer hostile folders with an error and leave no file behind.
TEST_F(Verify, HostileArtifactsEndEvalAndVerifyInAnError) {
  expect_success(1, quick_run(out_));
  write_text(folder_ / "outside", read_text(out_ / "model.safetensors"));
  const std::vector<std::pair<std::string, std::function<void(const fs::path&)>>> cases{
      {"a link out of the folder",
       [&](const fs::path& artifact) {
         fs::remove(artifact / "model.safetensors");
         fs::create_symlink(folder_ / "outside", artifact / "model.safetensors");
       }},
      {"a weight map out of the folder",
       [&](const fs::path& artifact) {
         fs::remove(artifact / "model.safetensors");
         write_text(artifact / "model.safetensors.index.json", R"({"weight_map": {"lm_head.weight": "../outside"}})");
       }},
      {"a shard missing",
       [](const fs::path& artifact) {
         fs::remove(artifact / "model.safetensors");
         write_text(artifact / "model.safetensors.index.json", R"({"weight_map": {"lm_head.weight": "part"}})");
       }},
      {"random bytes",
       [](const fs::path& artifact) { write_text(artifact / "model.safetensors", std::string(999, 'x')); }},
      {"other bits", [](const fs::path& artifact) {
         auto config = json_of(artifact / "config.json");
         config["quantization_config"]["bits"] = 2;
         write_text(artifact / "config.json", config.dump());
       }}};
  for (const auto& [name, change] : cases) {
    const auto artifact = folder_ / "hostile";
    fs::remove_all(artifact);
    fs::copy(out_, artifact);
    change(artifact);
    const auto before = checksums(folder_.path());

    const auto verified = verify(artifact);
    const auto evaluated =
        gptq_dist(1, Words{"eval", "--model", artifact, "--text", source_path("jobs/demo/eval.txt"), "--windows", "1"});

    EXPECT_EQ(verified.code, 65) << name << "\n" << verified.out << verified.err;
    EXPECT_EQ(evaluated.code, 65) << name << "\n" << evaluated.err;
    EXPECT_EQ(checksums(folder_.path()), before) << name;
  }
}

}  // namespace
}  // namespace gptqd::jobs::test
