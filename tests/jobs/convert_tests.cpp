/// @file Artifacts of every format from one run, and from one another.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/jobs/gptq_dist.hpp"

namespace gptqd::jobs::test {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

/// One setting, the formats that hold it exactly, and those that do not with a word of the reason.
struct Setting {
  std::string name;
  std::string model;
  Options options;
  std::vector<std::string> lossless;
  std::map<std::string, std::string> refused;
};

void PrintTo(const Setting& setting, std::ostream* out) { *out << setting.name; }

class Formats : public ::testing::TestWithParam<Setting> {
 protected:
  Formats() {
    auto options = GetParam().options;
    options["--model"] = demo_model(GetParam().model);
    options["--method"] = "rtn";  // a second instead of ten; the codes do not matter here
    options["--act-order"] = options.contains("--act-order") ? options["--act-order"] : "none";
    if (options["--act-order"] == "dynamic") {
      options["--method"] = "gptq";
    }
    expect_success(1, quick_run(out_, options));
  }

  static CommandResult convert(const fs::path& from, const std::string& format, const fs::path& to) {
    return gptq_dist(1, Words{"convert", from, "--to", format, "--out", to});
  }

  /// Of all files but the model card, which tells of the run where there was one.
  static std::map<std::string, std::string> contents(const fs::path& folder) {
    auto sums = checksums(folder);
    EXPECT_EQ(sums.erase("README.md"), 1u) << folder;
    return sums;
  }

  TemporaryFolder folder_;
  fs::path out_ = folder_ / "out";
};

TEST_P(Formats, MergedAndConvertedAreTheSameThereAndBackOrRefused) {
  for (const auto& format : GetParam().lossless) {
    SCOPED_TRACE(format);
    const auto merged =
        gptq_dist(1, Words{"merge", work_of(out_), "--format", format, "--out", folder_ / ("merged-" + format)});
    ASSERT_EQ(merged.code, 0) << merged.err;
    const auto converted = convert(out_, format, folder_ / format);
    ASSERT_EQ(converted.code, 0) << converted.err;

    EXPECT_EQ(contents(folder_ / format), contents(folder_ / ("merged-" + format)));
    if (format.starts_with("gptq") || format == "compressed-tensors") {
      const auto own = GetParam().lossless.front();
      const auto back = convert(folder_ / format, own, folder_ / ("back-" + format));
      ASSERT_EQ(back.code, 0) << back.err;
      EXPECT_EQ(contents(folder_ / ("back-" + format)), contents(out_));
    }
  }
  for (const auto& [format, reason] : GetParam().refused) {
    SCOPED_TRACE(format);
    const auto result = convert(out_, format, folder_ / format);

    EXPECT_EQ(result.code, 64);
    EXPECT_THAT(result.err, HasSubstr(reason));
    EXPECT_FALSE(fs::exists(folder_ / format));
  }
  EXPECT_THAT(half_written(folder_.path()), IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(
    , Formats,
    ::testing::Values(
        Setting{"w4", "llama-7m", {}, {"gptq", "gptq_v2", "compressed-tensors", "gguf", "safetensors-float"}, {}},
        Setting{"w4_asymmetric",
                "bloom-7m",
                {{"--asym", ""}, {"--group-size", "64"}},
                {"gptq_v2", "compressed-tensors", "gguf", "safetensors-float"},
                {{"gptq", "cannot hold asymmetric zeros safely"}}},
        Setting{"w8_asymmetric",
                "llama-7m",
                {{"--bits", "8"}, {"--asym", ""}, {"--group-size", "-1"}},
                {"gptq_v2", "compressed-tensors"},
                {{"gguf", "8 bits, asymmetric"}, {"gptq", "asymmetric zeros"}}},
        Setting{"w3", "opt-7m", {{"--bits", "3"}}, {"gptq_v2", "compressed-tensors"}, {{"gguf", "knows no opt"}}},
        Setting{"w4_reordered",
                "llama-7m",
                {{"--act-order", "dynamic"}, {"--samples", "4"}, {"--seqlen", "64"}},
                {"gptq", "gptq_v2", "safetensors-float"},
                {{"compressed-tensors", "dynamic act-order"}, {"gguf", "order of columns"}}}),
    [](const auto& instance) { return instance.param.name; });

TEST(Format, AtQuantizeTimeIsCheckedBeforeTheWorkAndRemembered) {
  const TemporaryFolder folder;
  const auto refused = gptq_dist(1, quick_run(folder / "opt", {{"--format", "gguf"}}));
  EXPECT_EQ(refused.code, 64);
  EXPECT_THAT(refused.err, HasSubstr("llama.cpp knows no opt"));
  EXPECT_FALSE(fs::exists(work_of(folder / "opt")));
  const auto unknown = gptq_dist(1, quick_run(folder / "opt", {{"--format", "awq"}}));
  EXPECT_EQ(unknown.code, 64);
  EXPECT_THAT(unknown.err, HasSubstr("there is no format \"awq\"; the formats are gptq"));

  const auto options = quick_run(folder / "out", {{"--format", "compressed-tensors"}, {"--method", "rtn"}});
  expect_success(1, options);
  EXPECT_TRUE(fs::exists(folder / "out" / "gptq_dist.json"));
  EXPECT_THAT(expect_success(1, options).out, HasSubstr("is complete already"));
  const auto other = gptq_dist(1, quick_run(folder / "out", {{"--format", "gptq"}, {"--method", "rtn"}}));
  EXPECT_EQ(other.code, 64);
  EXPECT_THAT(other.err, HasSubstr("is not this run's result as gptq"));
}

TEST(Convert, SaysWhatItNeeds) {
  const TemporaryFolder folder;

  const auto nothing = gptq_dist(1, Words{"convert"});
  EXPECT_EQ(nothing.code, 64);
  EXPECT_THAT(nothing.err, HasSubstr("--artifact is missing"));
  const auto floats = gptq_dist(1, Words{"convert", demo_model(), "--to", "gptq_v2", "--out", folder / "out"});
  EXPECT_EQ(floats.code, 65);
  EXPECT_THAT(floats.err, AllOf(HasSubstr("opt-7m"), HasSubstr("no quantized model")));
}

}  // namespace
}  // namespace gptqd::jobs::test
