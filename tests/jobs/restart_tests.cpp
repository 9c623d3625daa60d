/// @file A run that was interrupted, or whose files were damaged, ends with the bytes of one that was not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/jobs/gptq_dist.hpp"

namespace gptqd::jobs::test {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int blocks = 6;

std::string shard_name(int block) { return fmt::format("block_{:05}.h5", block); }

/// A finished run, whose work folder is damaged and which is then run again.
class Restart : public ::testing::Test {
 protected:
  void SetUp() override {
    expect_success(1, quick_run(out_));
    ASSERT_FALSE(HasFailure());
    bytes_ = bytes_of_run(out_);
    ASSERT_EQ(bytes_.shards.size(), blocks);
  }

  fs::path shard(int block) const { return work_of(out_) / "shards" / shard_name(block); }
  fs::path sidecar(int block) const { return shard(block).replace_extension(".json"); }

  /// Removes the artifact and the shards of these blocks, runs again, and compares.
  void expect_recovery_from(const std::set<int>& missing, int ranks, const Options& options = {}) {
    for (const int block : missing) {
      fs::remove(shard(block));
      fs::remove(sidecar(block));
    }
    expect_recovery(std::ssize(missing), ranks, options);
  }

  void expect_recovery(std::int64_t blocks_to_compute, int ranks, const Options& options = {}) {
    fs::remove_all(out_);
    std::map<int, fs::file_time_type> written;
    for (int block = 0; block < blocks; ++block) {
      if (fs::exists(shard(block))) {
        written[block] = fs::last_write_time(shard(block));
      }
    }

    expect_success(ranks, quick_run(out_, options));

    if (HasFailure()) {
      return;
    }
    EXPECT_EQ(bytes_of_run(out_), bytes_);
    const auto report = report_of(out_);
    EXPECT_EQ(report.at("blocks").at("computed"), blocks_to_compute);
    EXPECT_EQ(report.at("blocks").at("found"), blocks - blocks_to_compute);
    EXPECT_EQ(report.at("layers").size(), 36u);
    EXPECT_THAT(half_written(folder_.path()), ::testing::IsEmpty());
    std::int64_t untouched = 0;
    for (const auto& [block, time] : written) {
      untouched += fs::last_write_time(shard(block)) == time ? 1 : 0;
    }
    EXPECT_EQ(untouched, blocks - blocks_to_compute);
  }

  void flip_byte(const fs::path& path, std::size_t offset) {
    auto text = read_text(path);
    text.at(offset) = static_cast<char>(text.at(offset) ^ 0x20);
    write_text(path, text);
  }

  TemporaryFolder folder_;
  fs::path out_ = folder_ / "out";
  RunBytes bytes_;
};

TEST_F(Restart, AnySubsetOfShardsMayBeMissing) {
  expect_recovery_from({0}, 2);
  expect_recovery_from({5}, 1);
  expect_recovery_from({2, 3}, 3);
  expect_recovery_from({0, 2, 4}, 2);
  expect_recovery_from({3, 4, 5}, 1);
}

TEST_F(Restart, AllShardsOrNoneMayBeMissing) {
  expect_recovery_from({0, 1, 2, 3, 4, 5}, 4);
  expect_recovery_from({}, 2);
  expect_recovery_from({}, 1);
}

TEST_F(Restart, StagesMayChange) {
  expect_recovery_from({4}, 2, {{"--stages", "2"}});  // the first stage only replays
  expect_recovery_from({1}, 2, {{"--stages", "2"}});  // the second has nothing to do
  expect_recovery_from({0, 5}, 3, {{"--stages", "3"}});
  expect_recovery_from({2, 3}, 4, {{"--stages", "2"}});
  expect_recovery_from({5}, 1);
}

TEST_F(Restart, AShardWithoutItsSidecarIsMadeAgain) {
  fs::remove(sidecar(3));

  expect_recovery(1, 2);
}

TEST_F(Restart, ASidecarWithoutItsShardIsMadeAgain) {
  fs::remove(shard(1));

  expect_recovery(1, 1);
}

TEST_F(Restart, DamagedFilesAreNoticedAndMadeAgain) {
  flip_byte(shard(0), fs::file_size(shard(0)) / 2);
  flip_byte(shard(1), 0);
  fs::resize_file(shard(2), fs::file_size(shard(2)) - 1);
  fs::resize_file(shard(3), 0);
  write_text(sidecar(4), "{\"bytes\":");
  write_text(shard(5), read_text(shard(5)) + "x");

  expect_recovery(6, 2);
}

TEST_F(Restart, ADamagedShardIsNamed) {
  flip_byte(shard(4), 4000);
  fs::remove_all(out_);

  const auto result = expect_success(1, quick_run(out_));

  EXPECT_THAT(result.err, AllOf(HasSubstr("block 4"), HasSubstr("damaged")));
  EXPECT_EQ(bytes_of_run(out_), bytes_);
}

TEST_F(Restart, LeftoversOfAKilledRunAreCleanedUp) {
  fs::remove_all(out_);
  fs::remove(shard(5));
  for (const auto& file :
       {shard(5), shard(3), sidecar(2), work_of(out_) / "run.json", work_of(out_) / "lock.node3.7"}) {
    write_text(file.string() + ".tmp", "half");
  }
  fs::create_directories(out_.string() + ".partial");
  write_text(fs::path(out_.string() + ".partial") / "model.safetensors", "half");

  expect_recovery(1, 2);
}

TEST_F(Restart, ACompleteRunIsLeftAsItIs) {
  const auto report = read_text(work_of(out_) / "report.json");
  for (const int ranks : {1, 2}) {
    const auto result = expect_success(ranks, quick_run(out_));

    EXPECT_THAT(result.out, HasSubstr("complete already"));
    EXPECT_EQ(bytes_of_run(out_), bytes_);
    EXPECT_EQ(read_text(work_of(out_) / "report.json"), report);
  }
}

TEST_F(Restart, ACompleteArtifactIsEnough) {
  fs::remove_all(work_of(out_));

  const auto result = expect_success(1, quick_run(out_));

  EXPECT_THAT(result.out, HasSubstr("complete already"));
  EXPECT_EQ(checksums(out_), bytes_.artifact);
}

TEST_F(Restart, OtherOptionsAreRefusedWithTheFieldsNamed) {
  const std::vector<std::tuple<std::string, std::string, std::string>> changes{
      {"--bits", "3", "spec.bits"},
      {"--damping", "0.02", "spec.damping"},
      {"--group-size", "64", "spec.group_size"},
      {"--samples", "8", "calibration.samples"},
      {"--hessian-leaves", "4", "partition.leaves"},
      {"--row-tile", "32", "partition.row_tile"},
      {"--no-true-sequential", "", "true_sequential"}};
  fs::remove_all(out_);
  for (const auto& [option, value, field] : changes) {
    const auto result = gptq_dist(1, quick_run(out_, {{option, value}}));

    EXPECT_EQ(result.code, 65) << option;
    EXPECT_THAT(result.err, AllOf(HasSubstr("belongs to another run"), HasSubstr(field))) << option;
    EXPECT_FALSE(fs::exists(out_));
  }
  EXPECT_EQ(checksums(work_of(out_) / "shards", ".h5"), bytes_.shards);
  expect_recovery_from({}, 1);
}

TEST_F(Restart, AnotherModelOrTextIsRefusedWithTheFieldsNamed) {
  fs::remove_all(out_);
  fs::copy(demo_model(), folder_ / "model");
  auto config = read_text(folder_ / "model/config.json");
  write_text(folder_ / "model/config.json", config.replace(config.find("0.02"), 4, "0.03"));
  write_text(folder_ / "text.txt", read_text(source_path("jobs/demo/calib.txt")).substr(0, 100'000));

  const auto other_model = gptq_dist(2, quick_run(out_, {{"--model", folder_ / "model"}}));
  const auto other_text = gptq_dist(1, quick_run(out_, {{"--calibration", folder_ / "text.txt"}}));

  EXPECT_EQ(other_model.code, 65);
  EXPECT_THAT(other_model.err, HasSubstr("model.config"));
  EXPECT_EQ(other_text.code, 65);
  EXPECT_THAT(other_text.err, HasSubstr("calibration.hash"));
}

TEST_F(Restart, AnotherBlasNeedsAllowMixed) {
  fs::remove_all(out_);
  fs::remove(shard(5));
  const CommandOptions elsewhere{.folder = {}, .environment = {{"OPENBLAS_CORETYPE", "Nehalem"}}};

  const auto refused = gptq_dist(1, quick_run(out_), elsewhere);
  const auto allowed = gptq_dist(1, quick_run(out_, {{"--allow-mixed", ""}}), elsewhere);

  EXPECT_EQ(refused.code, 65);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("environment.backend"), HasSubstr("Nehalem"), HasSubstr("--allow-mixed")));
  EXPECT_EQ(allowed.code, 0) << allowed.err;
  EXPECT_THAT(allowed.err, HasSubstr("made elsewhere"));
  EXPECT_EQ(report_of(out_).at("blocks").at("found"), 5);
}

TEST_F(Restart, MergeGivesTheBytesOfTheRun) {
  const auto merged = folder_ / "merged";

  const auto result = gptq_dist(1, Words{"merge", work_of(out_), "--out", merged});
  const auto again = gptq_dist(1, Words{"merge", work_of(out_), "--out", merged});

  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(checksums(merged), bytes_.artifact);
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(checksums(merged), bytes_.artifact);
}

TEST_F(Restart, MergeTakesAModelThatHasMoved) {
  fs::copy(demo_model(), folder_ / "moved");

  const auto result =
      gptq_dist(1, Words{"merge", work_of(out_), "--out", folder_ / "merged", "--model", folder_ / "moved"});

  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(checksums(folder_ / "merged"), bytes_.artifact);
}

TEST_F(Restart, MergeRefusesWhatIsIncompleteOrAnother) {
  const auto merged = folder_ / "merged";
  fs::copy(demo_model(), folder_ / "other");
  auto config = read_text(folder_ / "other/config.json");
  write_text(folder_ / "other/config.json", config.replace(config.find("0.02"), 4, "0.03"));

  const auto other_model = gptq_dist(1, Words{"merge", work_of(out_), "--out", merged, "--model", folder_ / "other"});
  const auto no_folder = gptq_dist(1, Words{"merge", folder_ / "absent", "--out", merged});
  flip_byte(shard(2), 5000);
  const auto damaged = gptq_dist(1, Words{"merge", work_of(out_), "--out", merged});
  fs::remove(shard(2));
  const auto missing = gptq_dist(1, Words{"merge", work_of(out_), "--out", merged});

  EXPECT_EQ(other_model.code, 65);
  EXPECT_THAT(other_model.err, HasSubstr("is not the model"));
  EXPECT_EQ(no_folder.code, 65);
  EXPECT_THAT(no_folder.err, HasSubstr("run.json"));
  EXPECT_EQ(damaged.code, 65);
  EXPECT_THAT(damaged.err, HasSubstr("block 2"));
  EXPECT_EQ(missing.code, 65);
  EXPECT_THAT(missing.err, HasSubstr("block 2"));
  EXPECT_FALSE(fs::exists(merged));
  EXPECT_FALSE(fs::exists(folder_ / "absent"));
  EXPECT_THAT(half_written(folder_.path()), ::testing::IsEmpty());
}

}  // namespace
}  // namespace gptqd::jobs::test
