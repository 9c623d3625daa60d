/// @file Ranks that die or hang: the job ends soon, leaves no process, and the next run completes it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <ctime>
#include <sstream>
#include <thread>

#include "tests/jobs/gptq_dist.hpp"

namespace gptqd::jobs::test {
namespace {

using gptqd::test::becomes_true;
using ::testing::HasSubstr;

constexpr double patience_seconds = 15;

/// Long enough that a signal meets it at work.
Options longer_run(const std::filesystem::path& out) {
  return quick_run(out, {{"--samples", "64"}, {"--seqlen", "256"}});
}

/// The process of a rank, or -1 when there is none (yet).
pid_t process_of_rank(const Command& job, int rank) {
  const std::string variable = fmt::format("OMPI_COMM_WORLD_RANK={}", rank) + '\0';
  for (const auto process : job.processes()) {
    if (read_text(fmt::format("/proc/{}/environ", process)).find(variable) != std::string::npos) {
      return process;
    }
  }
  return -1;
}

class Fault : public ::testing::Test {
 protected:
  /// Starts the job, sends a signal to one rank when the first block's shard is complete, and waits for the job's end.
  void run_and_signal(int ranks, int rank, int signal) {
    auto options = longer_run(out_);
    options["--stall-seconds"] = "2";
    Command job(command_line(ranks, options));
    const auto sidecar = work_of(out_) / "shards/block_00000.json";
    ASSERT_TRUE(becomes_true(60, [&] { return std::filesystem::exists(sidecar); })) << job.err();
    const auto process = process_of_rank(job, rank);
    ASSERT_GT(process, 0);

    kill(process, signal);

    const auto code = job.wait(patience_seconds);
    ASSERT_TRUE(code.has_value()) << job.err();
    EXPECT_NE(*code, 0);
    EXPECT_TRUE(becomes_true(5, [&] { return job.processes().empty(); }));
    EXPECT_FALSE(std::filesystem::exists(out_));
    messages_ = job.err();
  }

  /// The same run again, to its end: finished blocks are kept, the bytes those of an undisturbed run.
  void expect_completion() {
    expect_success(2, longer_run(out_));
    expect_success(1, longer_run(folder_ / "undisturbed"));

    EXPECT_GE(report_of(out_).at("blocks").at("found"), 1);
    EXPECT_EQ(bytes_of_run(out_), bytes_of_run(folder_ / "undisturbed"));
    EXPECT_THAT(half_written(folder_.path()), ::testing::IsEmpty());
  }

  TemporaryFolder folder_;
  std::filesystem::path out_ = folder_ / "out";
  std::string messages_;
};

TEST_F(Fault, AKilledRankEndsTheJobAndTheNextRunCompletesIt) {
  run_and_signal(2, 1, SIGKILL);

  expect_completion();
}

TEST_F(Fault, AKilledFirstRankEndsTheJobAndTheNextRunCompletesIt) {
  run_and_signal(3, 0, SIGKILL);

  expect_completion();
}

TEST_F(Fault, AStoppedRankEndsTheJobWithAMessageAndTheNextRunCompletesIt) {
  run_and_signal(2, 1, SIGSTOP);

  EXPECT_THAT(messages_, HasSubstr("has been silent for"));
  expect_completion();
}

/// A fault that a run meets, what it does to the run, and what is said.
struct Trouble {
  std::string fault;
  int ranks;
  int code;
  std::string message;
};

class Troubles : public ::testing::Test {
 protected:
  /// Meets the troubles one after another in one work folder; a run without them then completes it.
  void meet(const std::vector<Trouble>& troubles) {
    for (const auto& trouble : troubles) {
      const auto result = gptq_dist(trouble.ranks, quick_run(out_, {{"--stall-seconds", "2"}}),
                                    {.folder = {}, .environment = {{"GPTQ_DIST_FAULT", trouble.fault}}});

      EXPECT_EQ(result.code, trouble.code) << trouble.fault << "\n" << result.err;
      EXPECT_THAT(result.err, HasSubstr(trouble.message)) << trouble.fault;
      EXPECT_EQ(last_words(result.err), trouble.code == 0 ? 0 : 1) << trouble.fault << "\n" << result.err;
      EXPECT_LT(result.seconds, 30) << trouble.fault;
      EXPECT_EQ(std::filesystem::exists(out_), trouble.code == 0) << trouble.fault;
      std::filesystem::remove_all(out_);
    }
    expect_success(2, quick_run(out_));
    expect_success(1, quick_run(folder_ / "undisturbed"));
    EXPECT_EQ(bytes_of_run(out_), bytes_of_run(folder_ / "undisturbed"));
    EXPECT_THAT(half_written(folder_.path()), ::testing::IsEmpty());
  }

  /// Lines of ours by which the job ended.
  static int last_words(const std::string& err) {
    std::istringstream lines(err);
    int count = 0;
    for (std::string line; std::getline(lines, line);) {
      count += line.find("gptq-dist: ") != std::string::npos && line.find("GPTQ_DIST_FAULT: ") == std::string::npos;
    }
    return count;
  }

  TemporaryFolder folder_;
  std::filesystem::path out_ = folder_ / "out";
};

TEST_F(Troubles, OfTheDiskEndTheRunWithTheirNamesAndNothingIsLost) {
  meet({{"file.create:erofs", 1, 74, "cannot create"},
        {"lock.take:erofs", 1, 74, "cannot create the lock"},
        {"file.write:enospc:3", 1, 74, "No space left on device (errno 28); free space there"},
        {"file.fsync:eio:4", 1, 74, "cannot flush to disk"},
        {"file.rename:eio:4", 1, 74, "cannot rename block_"},
        {"folder.fsync:eio:3", 1, 74, "cannot flush the folder to disk"},
        {"file.read:eio:40+", 1, 74, "cannot read"},
        {"file.write@1:edquot:2", 2, 74, "rank 1: while working on block"},
        {"folder.rename:enospc", 1, 74, "cannot rename out.partial"}});
}

TEST_F(Troubles, ThatPassAreWaitedForAndFoldersThatCannotBeFlushedAreNoTrouble) {
  meet({{"file.write:eintr:3,file.write:eagain:4,file.open:estale:2,file.fsync:eintr:5,file.read:eagain:9", 1, 0, ""},
        {"folder.fsync:einval:1+", 2, 0, ""}});
}

TEST_F(Troubles, OfARankEndTheJobWithOneMessageThatNamesRankBlockAndPhase) {
  meet({{"phase@1:slow:2,phase@1:kill:2", 3, 137, "nothing is heard of rank 1 (block 0, attention_out) any more"},
        {"phase@0:kill:7", 3, 137, "nothing is heard of rank 0 (block "},
        {"phase@1:hang:2", 2, 70, "rank 1 has made no progress for 2 s (block "},
        {"phase@2:slow:2,phase@2:stop:2", 3, 70, "rank 2 has been silent for 2 s (block "},
        {"phase@0:slow:2,phase@0:stop:2", 3, 70, "rank 0 has been silent for"},
        {"comm.collective@1:hang:30", 2, 70, "rank 1"},
        {"comm.collective@1:slow:40,comm.collective@1:stop:40", 2, 70, "rank 1 has been silent for 2 s (block "}});
}

TEST_F(Troubles, AnErrorOnARankIsPrintedOnceWithItsPlace) {
  const auto result =
      gptq_dist(3, quick_run(out_), {.folder = {}, .environment = {{"GPTQ_DIST_FAULT", "phase@1:throw:3"}}});

  EXPECT_EQ(result.code, 70);
  EXPECT_THAT(result.err, HasSubstr("gptq-dist: rank 1: while working on block 0: GPTQ_DIST_FAULT: thrown at the point "
                                    "phase (block 0, mlp_in)"));
  EXPECT_EQ(last_words(result.err), 0) << result.err;  // no other rank has anything to add
}

TEST_F(Troubles, ALostOrHangingDeviceEndsTheJobWithItsPlaceAndNothingIsLost) {
  const std::string is_lost = "the CPU, taken for a GPU, is lost to this process";
  meet({{"phase@1:lose-device:14", 2, 70, "gptq-dist: rank 1: while working on block 3: " + is_lost},
        {"phase@0:lose-device:2", 3, 70, "gptq-dist: rank 0: while working on block "},
        {"phase:lose-device:2", 1, 70, "finished blocks are kept"},
        {"phase@1:hang-device:2", 2, 70, "rank 1 has made no progress for 2 s (block "},
        {"phase:hang-device:2", 1, 70, "rank 0 has made no progress for 2 s (block "}});

  EXPECT_GE(report_of(out_).at("blocks").at("found"), 1);
}

TEST_F(Troubles, WantOfMemoryIsAMessageWithANextStep) {
  meet({{"phase@1:no-memory:2", 2, 70, "gptq-dist: rank 1: while working on block 0: out of memory; use more ranks"},
        {"start:no-memory", 1, 70, "gptq-dist: rank 0: out of memory; use more ranks"}});
}

TEST_F(Troubles, ARankThatDoesNotComeToTheEndOfMpiIsNotWaitedForForEver) {
  const auto result = gptq_dist(2, quick_run(out_, {{"--stall-seconds", "2"}}),
                                {.folder = {}, .environment = {{"GPTQ_DIST_FAULT", "end@1:stop"}}});

  EXPECT_EQ(result.code, 70);
  EXPECT_THAT(result.err, HasSubstr("rank 0: the work is done, but another rank did not come to the end of the job"));
  EXPECT_EQ(last_words(result.err), 1) << result.err;
  EXPECT_TRUE(std::filesystem::exists(out_));
}

class WallClock : public Troubles {
 protected:
  void SetUp() override {
    if (std::string_view(GPTQD_JUMPING_CLOCK).empty()) {
      GTEST_SKIP() << "sanitizers have to be loaded first";
    }
  }
};

/// Of every process that it starts, a wall clock that jumps by days, several times a second.
CommandOptions under_a_jumping_clock(const std::string& fault) {
  return {.folder = {}, .environment = {{"LD_PRELOAD", GPTQD_JUMPING_CLOCK}, {"GPTQ_DIST_FAULT", fault}}};
}

TEST_F(WallClock, MayJumpAndNothingChanges) {
  const auto far = std::to_string(std::time(nullptr) + 1000 * 86400);

  const auto result = gptq_dist(2, quick_run(out_, {{"--stall-seconds", "2"}, {"--job-end", far}}),
                                under_a_jumping_clock("phase:slow:2"));

  EXPECT_EQ(result.code, 0) << result.err;
  expect_success(1, quick_run(folder_ / "undisturbed"));
  EXPECT_EQ(bytes_of_run(out_), bytes_of_run(folder_ / "undisturbed"));
}

TEST_F(WallClock, MayJumpAndNoLockIsStale) {
  std::filesystem::create_directories(work_of(out_));
  std::atomic<bool> beating{true};
  std::thread holder([&] {
    for (int beats = 0; beating; ++beats) {
      const nlohmann::json lock{{"host", "elsewhere"}, {"pid", 1},       {"start", ""},   {"since", ""},
                                {"began", 0},          {"beats", beats}, {"activity", ""}};
      write_text(work_of(out_) / "lock.new", lock.dump());
      std::filesystem::rename(work_of(out_) / "lock.new", work_of(out_) / "lock");
      std::this_thread::sleep_for(std::chrono::milliseconds(1500));
    }
  });

  const auto result = gptq_dist(1, quick_run(out_), under_a_jumping_clock(""));
  beating = false;
  holder.join();

  EXPECT_EQ(result.code, 64) << result.err;
  EXPECT_THAT(result.err, HasSubstr("is in use by process 1 on elsewhere"));
}

TEST_F(Troubles, AFaultThatDoesNotExistIsRefused) {
  for (const char* fault : {"phase", "phase:kill:0", "phase:kill:x", "nowhere:kill", "phase:explode", "phase@x:kill"}) {
    const auto result = gptq_dist(1, quick_run(out_), {.folder = {}, .environment = {{"GPTQ_DIST_FAULT", fault}}});

    EXPECT_EQ(result.code, 64) << fault;
    EXPECT_THAT(result.err, HasSubstr("expected point[@rank]:action[:count[+]]")) << fault;
  }
}

TEST_F(Troubles, AFileThatMayNotGrowIsAMessage) {
  std::string command = "ulimit -f 6000;";  // KiB: less than the artifact, more than Open MPI's own files
  for (const auto& word : command_line(1, quick_run(out_))) {
    command += " " + word;
  }

  const auto result = run_command({"bash", "-c", command});

  EXPECT_EQ(result.code, 74);
  EXPECT_THAT(result.err, HasSubstr("File too large"));
}

TEST_F(Troubles, HandEditedFilesAreNoticedOrMadeAgain) {
  expect_success(1, quick_run(out_));
  const auto bytes = bytes_of_run(out_);
  std::filesystem::remove_all(out_);
  const auto work = work_of(out_);
  auto sidecar = nlohmann::json::parse(read_text(work / "shards/block_00002.json"));
  sidecar["xxh3_128"] = std::string(32, '0');
  sidecar["run"]["seconds"]["total"] = "long";
  write_text(work / "shards/block_00002.json", sidecar.dump());
  sidecar = nlohmann::json::parse(read_text(work / "shards/block_00003.json"));
  sidecar["run"] = {{"seconds", 7}};
  write_text(work / "shards/block_00003.json", sidecar.dump());
  write_text(work / "manifest.json", R"({"shards": "none", "num_blocks": -4})");

  const auto result = expect_success(1, quick_run(out_));

  EXPECT_THAT(result.err,
              ::testing::AllOf(HasSubstr("block 2: the shard is damaged"), HasSubstr("computing the other 1")));
  EXPECT_EQ(bytes_of_run(out_), bytes);
  EXPECT_EQ(nlohmann::json::parse(read_text(work / "manifest.json")).at("shards").size(), 6u);

  auto record = read_text(work / "run.json");
  write_text(work / "run.json", record.replace(record.find("0.01"), 4, "0.02"));
  std::filesystem::remove_all(out_);
  const auto edited = gptq_dist(1, quick_run(out_));
  write_text(work / "run.json", "{");
  const auto broken = gptq_dist(1, quick_run(out_));

  EXPECT_EQ(edited.code, 65);
  EXPECT_THAT(edited.err, HasSubstr("spec.damping"));
  EXPECT_EQ(broken.code, 65);
  EXPECT_THAT(broken.err, HasSubstr("run.json"));
}

TEST_F(Fault, KilledAgainAndAgainAtAnyInstantItStillEndsWithTheSameBytes) {
  for (const int milliseconds : {150, 400, 650, 900, 1200}) {
    Command job(command_line(2, longer_run(out_)));
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    for (const auto process : job.processes()) {
      kill(process, SIGKILL);
    }
    ASSERT_TRUE(job.wait(patience_seconds).has_value());
    ASSERT_TRUE(becomes_true(5, [&] { return job.processes().empty(); }));
  }

  expect_success(2, longer_run(out_));
  expect_success(1, longer_run(folder_ / "undisturbed"));

  EXPECT_EQ(bytes_of_run(out_), bytes_of_run(folder_ / "undisturbed"));
  EXPECT_THAT(half_written(folder_.path()), ::testing::IsEmpty());
}

}  // namespace
}  // namespace gptqd::jobs::test
