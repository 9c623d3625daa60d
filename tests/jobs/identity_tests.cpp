/// @file The bytes of shards and artifact do not depend on ranks, stages, threads, places or time.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/safetensors.hpp"
#include "tests/jobs/gptq_dist.hpp"
#include "tests/support/host_model.hpp"

namespace gptqd::jobs::test {
namespace {

using gptqd::test::HostModel;
using ::testing::SizeIs;

/// One way of running: ranks, and options that must not matter.
struct Way {
  int ranks;
  Options options;
};

/// Runs each way and compares its bytes with those of the first.
void expect_same_bytes(const std::vector<Way>& ways, const Options& settings = {}) {
  const TemporaryFolder folder;
  std::optional<RunBytes> first;
  int number = 0;
  for (const auto& way : ways) {
    const auto out = folder / fmt::format("run-{}", number++);
    auto options = quick_run(out, settings);
    options.insert(way.options.begin(), way.options.end());

    expect_success(way.ranks, options);

    if (::testing::Test::HasFailure()) {
      return;
    }
    const auto bytes = bytes_of_run(out);
    if (!first) {
      ASSERT_THAT(bytes.shards, SizeIs(::testing::Ge(2u)));
      ASSERT_TRUE(bytes.artifact.contains("quantize_config.json"));
      first = bytes;
    }
    ASSERT_EQ(bytes, *first) << way.ranks << " ranks";
    ASSERT_THAT(half_written(folder.path()), ::testing::IsEmpty());
  }
}

// opt-7m has layers of 256 and 1,024 columns: two and eight panels, and many tiles.
const Options many_pieces{{"--panel-columns", "128"}, {"--row-tile", "32"}, {"--hessian-leaves", "8"}};

TEST(Identity, RanksDoNotMatter) { expect_same_bytes({{1, {}}, {2, {}}, {3, {}}, {4, {}}}, {{"--clip", "hessian"}}); }

TEST(Identity, RanksDoNotMatterWhereTheyShareTheFilesOfTheArtifact) {
  expect_same_bytes({{1, {}}, {2, {}}, {3, {}}},
                    {{"--max-shard-size", "0.002"}, {"--format", "gptq"}, {"--method", "rtn"}});
}

TEST(Identity, RanksDoNotMatterWithManyPanelsAndTiles) {
  expect_same_bytes({{1, {}}, {2, {}}, {3, {}}, {4, {}}}, many_pieces);
}

TEST(Identity, ThreadsDoNotMatter) {
  expect_same_bytes(
      {{1, {{"--threads", "1"}}}, {1, {{"--threads", "2"}}}, {1, {{"--threads", "3"}}}, {2, {{"--threads", "2"}}}},
      many_pieces);
}

TEST(Identity, StagesDoNotMatter) {
  expect_same_bytes(
      {{1, {}}, {2, {{"--stages", "2"}}}, {3, {{"--stages", "3"}}}, {4, {{"--stages", "2"}}}, {4, {{"--stages", "4"}}}},
      many_pieces);
}

TEST(Identity, WhereActivationsLiveDoesNotMatter) {
  const Options parked{{"--activations", "parked"}};
  // A micro-batch a sample, two a leaf.
  auto settings = many_pieces;
  settings["--micro-batch-tokens"] = "128";
  expect_same_bytes({{1, {{"--activations", "resident"}}}, {1, parked}, {2, parked}, {3, parked}}, settings);
  for (const auto& [name, value] : Options{{"--no-true-sequential", ""}, {"--propagate", "float"}}) {
    auto changed = settings;
    changed[name] = value;
    expect_same_bytes({{1, {}}, {2, parked}}, changed);
  }
}

TEST(Identity, FloatActivationsOnRanksAndStages) {
  auto settings = many_pieces;
  settings["--propagate"] = "float";
  expect_same_bytes({{1, {}}, {2, {}}, {2, {{"--stages", "2"}}}, {4, {{"--stages", "2"}}}, {3, {{"--stages", "3"}}}},
                    settings);
}

TEST(Identity, OneLeafMoreThanARankOrAsManyAsSamplesDoNotMatter) {
  expect_same_bytes({{1, {}}, {2, {}}, {4, {}}}, {{"--hessian-leaves", "4"}});
  expect_same_bytes({{1, {}}, {3, {}}}, {{"--hessian-leaves", "16"}});
}

TEST(Identity, FewerSamplesThanLeavesDoNotMatter) {
  for (const char* samples : {"1", "3", "11"}) {
    expect_same_bytes({{1, {}}, {2, {}}, {4, {}}}, {{"--samples", samples}});
  }
}

TEST(Identity, TheFolderOfTheModelAndTheSizeOfTheFilesAreOnlyWhatTheySay) {
  const TemporaryFolder folder;
  std::filesystem::copy(demo_model(), folder / "copy");

  expect_same_bytes({{1, {}}, {2, {}}}, {{"--model", folder / "copy"}, {"--max-shard-size", "0.002"}});
  expect_success(1, quick_run(folder / "a", {{"--max-shard-size", "0.002"}}));
  expect_success(2, quick_run(folder / "b", {{"--max-shard-size", "0.002"}, {"--model", folder / "copy"}}));

  EXPECT_EQ(bytes_of_run(folder / "a"), bytes_of_run(folder / "b"));
  EXPECT_TRUE(std::filesystem::exists(folder / "a/model.safetensors.index.json"));
}

TEST(Identity, ATextAsCalibrationGivesTheSameWindowsOnEveryRank) {
  const TemporaryFolder folder;
  const auto text = read_text(source_path("jobs/demo/calib.txt"));
  write_text(folder / "short.txt", text.substr(0, 100'000));

  expect_same_bytes({{1, {}}, {2, {}}, {2, {{"--stages", "2"}}}}, {{"--calibration", folder / "short.txt"}});
}

TEST(Identity, AModelInBfloat16InSeveralFiles) {
  const TemporaryFolder folder;
  auto model = HostModel::read(demo_model());
  for (auto& tensor : model.tensors) {
    tensor = to_dtype(tensor, DType::bf16);
  }
  model.write_sharded(folder.path(), 3);

  expect_same_bytes({{1, {}}, {2, {}}, {3, {}}}, {{"--model", folder.path()}});
}

TEST(Identity, ObqOnASmallModel) {
  const TemporaryFolder folder;
  io::SafetensorsWriter writer(folder / "tokens.safetensors",
                               {{.name = "input_ids", .dtype = DType::i32, .shape = {9, 40}}});
  std::vector<std::int32_t> ids;
  for (std::int32_t i = 0; i < 9 * 40; ++i) {
    ids.push_back(i * i % 157);
  }
  writer.append("input_ids", std::as_bytes(std::span(ids)));
  writer.commit();

  for (const char* method : {"obq", "gptq"}) {
    expect_same_bytes({{1, {}}, {2, {}}, {4, {}}}, {{"--model", source_path("tests/golden/models/opt-pre")},
                                                    {"--calibration", folder / "tokens.safetensors"},
                                                    {"--samples", "9"},
                                                    {"--seqlen", "40"},
                                                    {"--group-size", "16"},
                                                    {"--row-tile", "16"},
                                                    {"--method", method}});
  }
}

struct Settings {
  std::string name;
  Options options;
};
void PrintTo(const Settings& settings, std::ostream* out) { *out << settings.name; }

class IdentityWithSettings : public ::testing::TestWithParam<Settings> {};

TEST_P(IdentityWithSettings, TwoRanksGiveTheBytesOfOne) {
  auto options = many_pieces;
  options.insert(GetParam().options.begin(), GetParam().options.end());

  expect_same_bytes({{1, {}}, {2, {}}}, options);
}

INSTANTIATE_TEST_SUITE_P(
    All, IdentityWithSettings,
    ::testing::Values(
        Settings{"natural_order", {{"--act-order", "none"}}}, Settings{"dynamic_order", {{"--act-order", "dynamic"}}},
        Settings{"asymmetric", {{"--asym", ""}}}, Settings{"three_bits", {{"--bits", "3"}}},
        Settings{"two_bits", {{"--bits", "2"}}}, Settings{"eight_bits", {{"--bits", "8"}}},
        Settings{"clip_by_hessian", {{"--clip", "hessian"}}},
        Settings{"double_precision", {{"--solver-precision", "f64"}}}, Settings{"whole_rows", {{"--group-size", "-1"}}},
        Settings{"small_groups", {{"--group-size", "32"}}}, Settings{"published_choices", {{"--reference", ""}}},
        Settings{"float_block", {{"--no-true-sequential", ""}}}, Settings{"round_to_nearest", {{"--method", "rtn"}}},
        Settings{"round_to_nearest_by_hessian", {{"--method", "rtn"}, {"--clip", "hessian"}}}),
    [](const auto& info) { return info.param.name; });

TEST(Identity, SettingsThatMatterGiveOtherBytes) {
  const TemporaryFolder folder;
  expect_success(1, quick_run(folder / "base"));
  const auto base = bytes_of_run(folder / "base");
  int number = 0;
  for (const auto& [name, value] :
       Options{{"--damping", "0.02"}, {"--samples", "15"}, {"--clip", "hessian"}, {"--propagate", "float"}}) {
    const auto out = folder / fmt::format("other-{}", number++);
    expect_success(1, quick_run(out, {{name, value}}));

    const auto other = bytes_of_run(out);
    EXPECT_NE(other.artifact.at("model.safetensors"), base.artifact.at("model.safetensors")) << name;
    EXPECT_NE(other.shards, base.shards) << name;
  }
}

TEST(Identity, PerplexityIsTheSameAtEveryNumberOfRanksToTheLastBit) {
  const TemporaryFolder folder;
  std::optional<double> first;
  for (const int ranks : {1, 2, 3, 4}) {
    // Five windows in micro-batches of two: some ranks have none at four.
    const auto result =
        gptq_dist(ranks, Words{"eval", "--model", demo_model(), "--text", calibration_tokens(), "--windows", "5",
                               "--seqlen", "128", "--micro-batch-tokens", "256", "--json", folder / "eval.json"});
    ASSERT_EQ(result.code, 0) << result.err;

    const auto json = nlohmann::json::parse(read_text(folder / "eval.json"));
    EXPECT_EQ(json.at("windows"), 5);
    EXPECT_EQ(json.at("tokens"), 5 * 127);
    EXPECT_EQ(json.at("nll").get<double>(), first.value_or(json.at("nll"))) << ranks << " ranks";
    first = json.at("nll");
  }
}

}  // namespace
}  // namespace gptqd::jobs::test
