/// @file Runs that are asked to stop, by signals and for lack of time, and runs that meet another one's work folder.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <ctime>

#include "tests/jobs/gptq_dist.hpp"

namespace gptqd::jobs::test {
namespace {

namespace fs = std::filesystem;
using gptqd::test::becomes_true;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int phases_a_block = 4;

double seconds_of(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

class Stop : public ::testing::Test {
 protected:
  CommandResult run(int ranks, const std::string& fault = "", const Options& changes = {}) const {
    return gptq_dist(ranks, quick_run(out_, changes), with_fault(fault));
  }
  static CommandOptions with_fault(const std::string& fault) {
    CommandOptions options;
    if (!fault.empty()) {
      options.environment["GPTQ_DIST_FAULT"] = fault;
    }
    return options;
  }

  nlohmann::json status() const {
    const auto result = gptq_dist(1, Words{"status", work_of(out_), "--json"});
    EXPECT_EQ(result.code, 0) << result.err;
    return nlohmann::json::parse(result.out);
  }
  std::int64_t blocks_done() const { return status().at("blocks").at("done"); }

  /// A run that hangs in a phase of its second block; the first one's shard is there.
  std::unique_ptr<Command> hanging_run() const {
    auto job = std::make_unique<Command>(command_line(1, quick_run(out_, {{"--stall-seconds", "60"}})),
                                         with_fault(fmt::format("phase:hang:{}", phases_a_block + 2)));
    EXPECT_TRUE(becomes_true(60, [&] { return is_hanging(*job); })) << job->err();
    return job;
  }

  bool is_hanging(const Command& job) const {
    return job.err().find("now hang at phase") != std::string::npos &&
           fs::exists(work_of(out_) / "shards/block_00000.json");
  }

  void expect_completion(int ranks, const Options& changes = {}) {
    expect_success(ranks, quick_run(out_, changes));
    expect_success(1, quick_run(folder_ / "undisturbed"));
    EXPECT_EQ(bytes_of_run(out_), bytes_of_run(folder_ / "undisturbed"));
    EXPECT_THAT(half_written(folder_.path()), ::testing::IsEmpty());
    EXPECT_FALSE(fs::exists(work_of(out_) / "lock"));
    EXPECT_FALSE(fs::exists(work_of(out_) / "activations"));
  }

  TemporaryFolder folder_;
  fs::path out_ = folder_ / "out";
};

TEST_F(Stop, SigUsr1ToTheLauncherStopsInOrder) {
  Command job(command_line(2, quick_run(out_)), with_fault("phase:slow:6"));
  ASSERT_TRUE(becomes_true(60, [&] { return fs::exists(work_of(out_) / "shards/block_00000.json"); })) << job.err();

  kill(job.pid(), SIGUSR1);

  EXPECT_EQ(job.wait(30), 75) << job.err();
  EXPECT_THAT(job.err(), AllOf(HasSubstr("stopped by SIGUSR1: 1 new block is kept"), HasSubstr("1 of 6 blocks")));
  EXPECT_EQ(blocks_done(), 1);
  EXPECT_EQ(status().at("run").at("alive"), false);
  expect_completion(3);
}

TEST_F(Stop, AtAnyBoundaryOnAnyRankFinishedBlocksAreKept) {
  std::int64_t done = 0;
  for (const int phase : {3, 6, 5}) {  // of this run: before a block is done, in the second, at the start of the second
    const auto result = run(done == 0 ? 2 : 1, fmt::format("phase@{}:usr1:{}", done == 0 ? 1 : 0, phase));

    const bool has_gained = phase > phases_a_block;
    done += has_gained ? 1 : 0;
    EXPECT_EQ(result.code, has_gained ? 75 : 69) << result.err;
    EXPECT_THAT(result.err, HasSubstr(has_gained ? "1 new block is kept" : "no new block was finished"));
    EXPECT_EQ(blocks_done(), done);
  }
  expect_completion(4);
}

TEST_F(Stop, BeforeTheMergeWhenAllBlocksAreDone) {
  const auto last_block = run(2, "block.done@1:usr1:6");
  const auto merge_alone = run(1, "start:usr1");

  EXPECT_EQ(last_block.code, 75) << last_block.err;
  EXPECT_THAT(last_block.err, HasSubstr("all blocks are finished, the merge is left"));
  EXPECT_EQ(merge_alone.code, 69) << merge_alone.err;
  EXPECT_FALSE(fs::exists(out_));
  expect_completion(1);
}

TEST_F(Stop, ARunThatLostItsLockEndsAndSaysWhy) {
  const auto job = hanging_run();
  fs::remove(work_of(out_) / "lock");

  EXPECT_EQ(job->wait(15), 74) << job->err();
  EXPECT_THAT(job->err(), AllOf(HasSubstr("gptq-dist: rank 0: the lock"), HasSubstr("was removed"),
                                HasSubstr("(block 1, attention_out)")));
  expect_completion(1);
}

TEST_F(Stop, StagesStopTogether) {
  const Options stages{{"--stages", "2"}};

  const auto first = run(2, "phase@0:usr1:6", stages);
  const auto second = run(2, "phase@1:usr1:6", stages);

  EXPECT_EQ(first.code, 75) << first.err;
  EXPECT_EQ(second.code, 75) << second.err;
  EXPECT_EQ(blocks_done(), 4);  // one of the first stage; the other two of it and one of the second
  expect_completion(2, stages);
}

TEST_F(Stop, SigTermEndsTheRunWithinASecondWhateverItIsDoing) {
  const auto job = hanging_run();
  std::optional<int> code;

  const double seconds = seconds_of([&] {
    kill(job->pid(), SIGTERM);
    code = job->wait(10);
  });

  EXPECT_EQ(code, 75) << job->err();
  EXPECT_LT(seconds, 1.5);
  EXPECT_THAT(job->err(), HasSubstr("SIGTERM: stopped at once (block 1, attention_out); 1 new block is kept"));
  expect_completion(2);
}

TEST_F(Stop, ASecondSigUsr1DoesNotWaitForABoundary) {
  const auto job = hanging_run();

  kill(job->pid(), SIGUSR1);
  kill(job->pid(), SIGUSR1);  // the same signal, passed on by a launcher and its daemon
  EXPECT_EQ(job->wait(1.5), std::nullopt) << job->err();
  kill(job->pid(), SIGUSR1);

  EXPECT_EQ(job->wait(5), 75) << job->err();
  EXPECT_THAT(job->err(), HasSubstr("a second SIGUSR1: stopped at once"));
  EXPECT_EQ(blocks_done(), 1);
}

TEST_F(Stop, SigTermToMpirunGetsAMessageOutBeforeTheKill) {
  Command job(command_line(3, quick_run(out_, {{"--stall-seconds", "60"}})), with_fault("phase@0:hang:6"));
  ASSERT_TRUE(becomes_true(60, [&] { return is_hanging(job); })) << job.err();

  kill(job.pid(), SIGTERM);

  const auto code = job.wait(10);
  ASSERT_TRUE(code.has_value());
  EXPECT_NE(*code, 0);
  EXPECT_THAT(job.err(), HasSubstr("SIGTERM: stopped at once (block 1, attention_out)"));
  EXPECT_TRUE(becomes_true(5, [&] { return job.processes().empty(); }));
}

TEST_F(Stop, TheRunEndsBeforeABlockThatWouldNotFit) {
  // A block takes a second; the run has three and a half, of which the start takes some.
  const auto result = run(2, "block.load:slow:1+",
                          {{"--job-end", std::to_string(std::time(nullptr) + 100)}, {"--time-margin", "96.5"}});

  EXPECT_EQ(result.code, 75) << result.err;
  EXPECT_THAT(result.err, HasSubstr("stopped by the job's end, before which the next block would not be finished"));
  EXPECT_LT(blocks_done(), 4);
  expect_completion(1);
}

TEST_F(Stop, SlurmsEndOfTheJobIsKnownAndNeverPassed) {
  auto options = with_fault("phase:hang:2");
  // Whole seconds: of the two and more that it has above the margin, a slow start may take two.
  options.environment["SLURM_JOB_END_TIME"] = std::to_string(std::time(nullptr) + 8);

  const auto result = gptq_dist(1, quick_run(out_, {{"--time-margin", "5"}, {"--stall-seconds", "60"}}), options);

  EXPECT_EQ(result.code, 69) << result.err;
  EXPECT_THAT(result.err, HasSubstr("the job's end is near: stopped at once"));
  EXPECT_LT(result.seconds, 8);
}

TEST_F(Stop, TimesThatCannotBeAreRefused) {
  const auto now = std::time(nullptr);
  const std::vector<std::pair<Options, std::string>> cases{
      {{{"--job-end", std::to_string(now - 10)}}, "has passed"},
      {{{"--job-end", std::to_string(now + 100)}, {"--time-margin", "200"}}, "--time-margin 200"},
      {{{"--time-margin", "200"}}, "--job-end"},
      {{{"--restart", "anew"}}, "expected continue or fresh"},
      {{{"--checkpoint-activations", "every=0"}}, "every=N"},
      {{{"--checkpoint-activations", "often"}}, "every=N"}};
  for (const auto& [options, text] : cases) {
    const auto result = run(1, "", options);

    EXPECT_EQ(result.code, 64) << text;
    EXPECT_THAT(result.err, HasSubstr(text));
  }
  EXPECT_FALSE(fs::exists(work_of(out_)));
}

TEST_F(Stop, TasksThatMpiDoesNotBringTogetherAreRefusedWithTheFix) {
  const std::vector<std::pair<std::map<std::string, std::string>, std::string>> cases{
      {{{"SLURM_STEP_NUM_TASKS", "3"}}, "srun --mpi=pmix"},
      {{{"OMPI_COMM_WORLD_SIZE", "2"}}, "another Open MPI"},
      {{{"PMI_SIZE", "2"}}, "MPICH, Intel MPI"},
      {{{"PMI_SIZE", "2"}, {"PMI_RANK", "0"}}, "MPICH, Intel MPI"}};  // MPI starts, and sees one rank
  for (const auto& [variables, fix] : cases) {
    const auto result = gptq_dist(1, quick_run(out_), {.folder = {}, .environment = variables});

    EXPECT_EQ(result.code, 64) << fix;
    EXPECT_THAT(result.err, AllOf(HasSubstr("world of 1 rank"), HasSubstr(fix)));
  }
}

TEST_F(Stop, TwoRunsOnOneWorkFolderAreRefusedAndADeadOnesLockIsTakenOver) {
  const auto holder = hanging_run();
  ASSERT_TRUE(
      becomes_true(30, [&] { return read_text(work_of(out_) / "lock").find("attention_out") != std::string::npos; }));

  const auto refused = run(2);
  const auto alive = status();
  kill(holder->pid(), SIGKILL);
  holder->wait(10);
  const auto gone = gptq_dist(1, Words{"status", work_of(out_)});
  const auto next = run(2);

  EXPECT_EQ(refused.code, 64);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("is in use by process " + std::to_string(holder->pid())), HasSubstr("since"),
                                 HasSubstr("block 1, attention_out")));
  EXPECT_EQ(alive.at("run").at("alive"), true);
  EXPECT_EQ(alive.at("run").at("pid"), holder->pid());
  EXPECT_EQ(alive.at("blocks").at("done"), 1);
  EXPECT_THAT(gone.out, HasSubstr("gone without an orderly end"));
  EXPECT_EQ(next.code, 0) << next.err;
  EXPECT_THAT(next.err, AllOf(HasSubstr("its lock was taken over"), HasSubstr("found 1 of 6 blocks finished (0)"),
                              HasSubstr("computing the other 5, replaying 1 (about")));
  expect_completion(1);
}

TEST_F(Stop, StatusTellsWhatIsThere) {
  expect_success(1, quick_run(out_, {{"--no-merge", ""}}));
  const auto shards = work_of(out_) / "shards";
  fs::remove(shards / "block_00002.h5");
  fs::resize_file(shards / "block_00004.h5", 1000);

  const auto json = status();
  const auto text = gptq_dist(1, Words{"status", work_of(out_)});
  const auto nothing = gptq_dist(1, Words{"status", folder_ / "absent"});

  const auto& blocks = json.at("blocks");
  EXPECT_EQ(blocks.at("total"), 6);
  EXPECT_EQ(blocks.at("done"), 4);
  EXPECT_EQ(blocks.at("missing_blocks"), nlohmann::json({2}));
  EXPECT_EQ(blocks.at("corrupt_blocks").at(0).at("block"), 4);
  EXPECT_EQ(json.at("fingerprint"), report_of(out_).at("fingerprint_hash"));
  EXPECT_GT(json.at("eta_seconds"), 0);
  EXPECT_THAT(text.out, AllOf(HasSubstr("done         4 of 6 (0 to 1, 3, 5)"), HasSubstr("block 4: 1000 bytes"),
                              HasSubstr("left         about")));
  EXPECT_EQ(nothing.code, 65);
  EXPECT_FALSE(fs::exists(folder_ / "absent"));
}

TEST_F(Stop, FreshDiscardsWhatWasThereAndOnATerminalAsksFirst) {
  ASSERT_EQ(run(1, "phase:usr1:10").code, 75);
  write_text(work_of(out_) / "notes.txt", "not ours");
  const auto on_terminal = [&](const std::string& answer) {
    std::string command;
    for (const auto& word : command_line(1, quick_run(out_, {{"--restart", "fresh"}}))) {
      command += word + " ";
    }
    return run_command({"sh", "-c", fmt::format("printf '{}\\n' | script -qec '{}' /dev/null", answer, command)});
  };

  const auto refused = on_terminal("something");
  const auto kept = blocks_done();
  const auto agreed = on_terminal("out.work");
  const auto in_the_way = run(1, "", {{"--restart", "fresh"}});

  EXPECT_EQ(refused.code, 64);
  EXPECT_THAT(refused.out, AllOf(HasSubstr("type the folder's name (out.work)"), HasSubstr("nothing was discarded")));
  EXPECT_EQ(kept, 2);
  EXPECT_EQ(agreed.code, 0) << agreed.out;
  EXPECT_EQ(report_of(out_).at("blocks").at("computed"), 6);
  EXPECT_EQ(read_text(work_of(out_) / "notes.txt"), "not ours");
  EXPECT_EQ(in_the_way.code, 64);
  EXPECT_THAT(in_the_way.err, HasSubstr("out exists; remove it"));
}

class Snapshot : public Stop {
 protected:
  const Options every_second_{{"--checkpoint-activations", "every=2"}};

  /// Stopped in its last block, with snapshots behind blocks 1 and 3.
  void stop_late() {
    const auto result = run(2, fmt::format("phase@0:usr1:{}", 5 * phases_a_block + 2), every_second_);
    ASSERT_EQ(result.code, 75) << result.err;
    ASSERT_EQ(blocks_done(), 5);
    ASSERT_TRUE(fs::exists(generation(1)));
    ASSERT_TRUE(fs::exists(generation(3)));
  }
  fs::path generation(int block) const { return work_of(out_) / "activations" / fmt::format("after_{:05}", block); }
};

TEST_F(Snapshot, ALateRestartReplaysLittleOnAnyNumberOfRanks) {
  for (const int ranks : {1, 3}) {
    stop_late();

    const auto result = run(ranks, "", every_second_);

    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_THAT(result.err, AllOf(HasSubstr("from the snapshot of the hidden states behind block 3"),
                                  HasSubstr("replaying 1"), Not(HasSubstr("block 4 of 6: replayed"))));
    expect_completion(1);
    fs::remove_all(out_);
    fs::remove_all(work_of(out_));
    fs::remove_all(folder_ / "undisturbed");
    fs::remove_all(folder_ / "undisturbed.work");
  }
}

TEST_F(Snapshot, StagesBeginWhereTheSnapshotIs) {
  for (const char* stages : {"2", "3"}) {  // the snapshot lies at the end of the second of three stages
    stop_late();

    const auto result = run(3, "", {{"--stages", stages}});

    EXPECT_EQ(result.code, std::string(stages) == "2" ? 64 : 0) << result.err;
    expect_completion(std::string(stages) == "2" ? 2 : 3, {{"--stages", stages}});
    fs::remove_all(out_);
    fs::remove_all(work_of(out_));
    fs::remove_all(folder_ / "undisturbed");
    fs::remove_all(folder_ / "undisturbed.work");
  }
}

TEST_F(Snapshot, ADamagedOneIsNamedAndTheOneBeforeServes) {
  stop_late();
  auto leaf = read_text(generation(3) / "leaf_005.h5");
  leaf.at(leaf.size() / 2) ^= 1;
  write_text(generation(3) / "leaf_005.h5", leaf);

  const auto result = run(2);

  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, AllOf(HasSubstr("the snapshot behind block 3 is damaged"), HasSubstr("leaf_005.h5: checksum"),
                                HasSubstr("behind block 1")));
  expect_completion(1);
}

TEST_F(Snapshot, OneThatLacksAFileOrWhoseBlocksAreGoneIsOfNoUse) {
  stop_late();
  fs::remove(generation(3) / "leaf_000.json");
  fs::remove(work_of(out_) / "shards/block_00001.json");

  const auto result = run(2);

  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, Not(HasSubstr("from the snapshot")));
  expect_completion(1);
}

TEST_F(Snapshot, AtMostTwoGenerationsAreOnDisk) {
  const auto result =
      run(1, fmt::format("phase:usr1:{}", 4 * phases_a_block + 2), {{"--checkpoint-activations", "every=1"}});

  EXPECT_EQ(result.code, 75) << result.err;
  EXPECT_FALSE(fs::exists(generation(1)));
  EXPECT_TRUE(fs::exists(generation(2)));
  EXPECT_TRUE(fs::exists(generation(3)));
  expect_completion(2);
}

}  // namespace
}  // namespace gptqd::jobs::test
