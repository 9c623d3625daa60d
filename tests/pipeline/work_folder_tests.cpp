#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "pipeline/fingerprint.hpp"
#include "pipeline/work_folder.hpp"
#include "tests/pipeline/error_of.hpp"
#include "tests/support/run_command.hpp"

namespace gptqd::pipeline {
namespace {

using gptqd::test::read_text;
using gptqd::test::TemporaryFolder;
using gptqd::test::write_text;
using test::error_of;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

RunRecord record_with(int bits, const std::string& backend = "cpu") {
  return {.fingerprint = {{"spec", {{"bits", bits}}}, {"environment", {{"backend", backend}}}},
          .facts = {{"model", "/models/opt"}}};
}

class WorkFolder : public ::testing::Test {
 protected:
  RunRecord open(const RunRecord& wanted, bool allow_mixed = false) {
    return open_work_folder(work_, wanted, allow_mixed, [this](const std::string& line) { notes_.push_back(line); });
  }

  TemporaryFolder folder_;
  std::filesystem::path work_ = folder_ / "nested/out.work";
  std::vector<std::string> notes_;
};

TEST_F(WorkFolder, IsMadeWithTheRecordOfTheRun) {
  const auto opened = open(record_with(4));

  EXPECT_EQ(opened.fingerprint, record_with(4).fingerprint);
  EXPECT_EQ(read_run_record(work_).fingerprint, record_with(4).fingerprint);
  EXPECT_EQ(read_run_record(work_).facts, record_with(4).facts);
  EXPECT_TRUE(notes_.empty());
}

TEST_F(WorkFolder, IsOpenedAgainByTheSameRun) {
  open(record_with(4));

  EXPECT_EQ(open(record_with(4)).fingerprint, record_with(4).fingerprint);
}

TEST_F(WorkFolder, FactsThatDifferDoNotMatter) {
  open(record_with(4));
  auto moved = record_with(4);
  moved.facts["model"] = "/elsewhere/opt";

  EXPECT_NO_THROW(open(moved));
}

TEST_F(WorkFolder, RefusesAnotherRunAndNamesTheFieldsThatDiffer) {
  open(record_with(4));
  const auto before = read_text(fingerprint_path(work_));

  const Error error = error_of([&] { open(record_with(3)); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(),
              AllOf(HasSubstr("spec.bits: 4 there, 3 here"), HasSubstr("--work"), Not(HasSubstr("--allow-mixed"))));
  EXPECT_EQ(read_text(fingerprint_path(work_)), before);
}

TEST_F(WorkFolder, RefusesAnotherEnvironmentAndPointsToAllowMixed) {
  open(record_with(4, "cpu"));

  const Error error = error_of([&] { open(record_with(4, "gpu")); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(),
              AllOf(HasSubstr("environment.backend: \"cpu\" there, \"gpu\" here"), HasSubstr("--allow-mixed")));
}

TEST_F(WorkFolder, AllowMixedContinuesTheRunThatIsThereAndSaysSo) {
  open(record_with(4, "cpu"));

  const auto opened = open(record_with(4, "gpu"), true);

  EXPECT_EQ(opened.fingerprint, record_with(4, "cpu").fingerprint);
  EXPECT_THAT(notes_, ::testing::ElementsAre(AllOf(HasSubstr("environment.backend"), HasSubstr("--allow-mixed"))));
}

TEST_F(WorkFolder, AllowMixedDoesNotAllowOtherOptions) {
  open(record_with(4, "cpu"));

  const Error error = error_of([&] { open(record_with(3, "gpu"), true); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(), HasSubstr("spec.bits"));
}

TEST_F(WorkFolder, RefusesAFolderOfSomethingElseAndLeavesItAlone) {
  std::filesystem::create_directories(work_);
  write_text(work_ / "thesis.tex", "text");

  const Error error = error_of([&] { open(record_with(4)); });

  EXPECT_EQ(error.kind(), ErrorKind::usage);
  EXPECT_THAT(error.message(), AllOf(HasSubstr("thesis.tex"), HasSubstr("--work")));
  EXPECT_FALSE(std::filesystem::exists(fingerprint_path(work_)));
}

TEST_F(WorkFolder, WhatAKilledRunLeftBeforeItsRecordIsNoObstacle) {
  std::filesystem::create_directories(work_ / "shards");
  write_text(work_ / "run.json.tmp", "{\"finger");

  EXPECT_NO_THROW(open(record_with(4)));
}

TEST_F(WorkFolder, AFileInTheWayIsAnIoError) {
  write_text(folder_ / "nested", "a file");

  const Error error = error_of([&] { open(record_with(4)); });

  EXPECT_EQ(error.kind(), ErrorKind::io);
  EXPECT_THAT(error.message(), AllOf(HasSubstr("out.work"), HasSubstr("--work")));
}

TEST_F(WorkFolder, ADamagedRecordIsAnInputErrorThatNamesTheFile) {
  open(record_with(4));
  for (const char* text : {"", "{", "[]", "{\"fingerprint\": {}}", "{\"facts\": {}}"}) {
    write_text(fingerprint_path(work_), text);

    const Error error = error_of([&] { open(record_with(4)); });

    EXPECT_EQ(error.kind(), ErrorKind::input) << text;
    EXPECT_THAT(error.message(), HasSubstr("run.json")) << text;
  }
}

TEST_F(WorkFolder, NoRecordIsAnInputError) {
  const Error error = error_of([&] { read_run_record(folder_ / "absent"); });

  EXPECT_EQ(error.kind(), ErrorKind::input);
  EXPECT_THAT(error.message(), HasSubstr("run.json"));
}

WorkState work_with(const std::string& states) {
  WorkState work;
  for (const char state : states) {
    work.blocks.push_back({.status = state == 'v'   ? io::ShardStatus::valid
                                     : state == 'd' ? io::ShardStatus::damaged
                                                    : io::ShardStatus::missing});
  }
  return work;
}

TEST(WorkState, CountsWhatIsToBeComputedAndReplayed) {
  auto work = work_with("vvdv.v");

  EXPECT_EQ(work.count(io::ShardStatus::valid), 4);
  EXPECT_EQ(work.end_of_work(), 5);
  EXPECT_EQ(work.to_replay(0), 3);  // 0, 1 and 3; behind the last missing one nothing is gone through
  EXPECT_EQ(work.to_replay(2), 1);
  EXPECT_EQ(work.to_replay(5), 0);
  EXPECT_EQ(work.to_replay(6), 0);
  EXPECT_EQ(work.estimated_seconds(0, true), std::nullopt);
  work.compute_seconds = 10;
  work.replay_seconds = 1;
  EXPECT_EQ(work.estimated_seconds(0, true), 23);
  EXPECT_EQ(work.estimated_seconds(0, false), 20);
}

TEST(WorkState, OfACompleteOrEmptyFolderIsNothingToReplay) {
  EXPECT_EQ(work_with("vvv").end_of_work(), 0);
  EXPECT_EQ(work_with("vvv").to_replay(0), 0);
  EXPECT_EQ(work_with("...").to_replay(0), 0);
  EXPECT_EQ(work_with("...").end_of_work(), 3);
}

TEST(DescribeNumbers, JoinsRuns) {
  EXPECT_EQ(describe_numbers({}), "");
  EXPECT_EQ(describe_numbers({4}), "4");
  EXPECT_EQ(describe_numbers({0, 1, 2, 5, 7, 8}), "0 to 2, 5, 7 to 8");
}

TEST_F(WorkFolder, DiscardingLeavesTheRecordAndWhatIsNotOurs) {
  open(record_with(4));
  std::filesystem::create_directories(work_ / "shards");
  std::filesystem::create_directories(work_ / "activations/after_00001");
  write_text(work_ / "shards/block_00000.h5", "x");
  write_text(work_ / "notes.txt", "kept");

  discard_work(work_);

  EXPECT_TRUE(std::filesystem::exists(work_ / "run.json"));
  EXPECT_FALSE(std::filesystem::exists(work_ / "shards"));
  EXPECT_FALSE(std::filesystem::exists(work_ / "activations"));
  EXPECT_EQ(read_text(work_ / "notes.txt"), "kept");
}

}  // namespace
}  // namespace gptqd::pipeline
