#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <iterator>
#include <sstream>
#include <thread>

#include "kernels/base/error.hpp"
#include "tests/support/paths.hpp"

namespace gptqd::comm {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr double stall_seconds = 2;

std::string content_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Processes that have `token` on their command line.
std::vector<pid_t> processes_with(const std::string& token) {
  std::vector<pid_t> found;
  std::error_code gone;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", gone)) {
    const auto name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") == std::string::npos &&
        content_of(entry.path() / "cmdline").find(token) != std::string::npos) {
      found.push_back(static_cast<pid_t>(std::stol(name)));
    }
  }
  return found;
}

template <class Condition>
bool becomes_true(std::chrono::duration<double> within, Condition condition) {
  for (const auto end = Clock::now() + within; Clock::now() < end; std::this_thread::sleep_for(20ms)) {
    if (condition()) {
      return true;
    }
  }
  return condition();
}

/// A job under way; killed with all its processes if the test goes before it ends.
class Job {
 public:
  /// Under mpirun.
  Job(int ranks, const std::string& mode, int guilty_rank) {
    auto words = words_of(GPTQD_MPIEXEC " " GPTQD_MPIEXEC_FLAGS);
    words.insert(words.end(), {"-np", std::to_string(ranks)});
    spawn(std::move(words), mode, guilty_rank);
  }
  /// Without a launcher, with one more variable in the environment.
  Job(const std::string& variable, const std::string& mode) { spawn({variable}, mode, 0); }
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;
  ~Job() {
    for (const auto process : processes_with(token_)) {
      kill(process, SIGKILL);
    }
    if (!ended_) {
      waitpid(process_, nullptr, 0);
    }
  }

  /// Exit code of mpirun, or nothing when it goes on after `within`.
  std::optional<int> wait(std::chrono::duration<double> within) {
    int status = 0;
    ended_ = becomes_true(within, [&] { return waitpid(process_, &status, WNOHANG) == process_; });
    if (!ended_) {
      return std::nullopt;
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  std::vector<std::string> our_lines() const {
    std::vector<std::string> lines;
    std::istringstream text(errors());
    for (std::string line; std::getline(text, line);) {
      if (line.find("gptq-dist: rank") != std::string::npos) {
        lines.push_back(line);
      }
    }
    return lines;
  }
  std::string errors() const { return content_of(folder_ / "stderr"); }
  std::string output() const { return content_of(folder_ / "stdout"); }
  bool leaves_nothing_behind() const {
    return becomes_true(3s, [&] { return processes_with(token_).empty(); });
  }
  void signal_rank(int rank, int signal) const {
    const auto variable = fmt::format("OMPI_COMM_WORLD_RANK={}", rank);
    for (const auto process : processes_with(token_)) {
      // Variables end with a zero byte.
      const auto environment = content_of(fmt::format("/proc/{}/environ", process));
      if (environment.find(variable.c_str(), 0, variable.size() + 1) != std::string::npos) {
        kill(process, signal);
      }
    }
  }

 private:
  static std::vector<std::string> words_of(const std::string& text) {
    std::istringstream stream(text);
    return {std::istream_iterator<std::string>(stream), {}};
  }

  void spawn(std::vector<std::string> launcher, const std::string& mode, int guilty_rank) {
    auto words = words_of("/usr/bin/env " GPTQD_MPIEXEC_ENVIRONMENT);
    std::move(launcher.begin(), launcher.end(), std::back_inserter(words));
    words.insert(words.end(),
                 {GPTQD_FAULT_PROGRAM, mode, std::to_string(guilty_rank), std::to_string(stall_seconds), token_});
    std::vector<char*> arguments;
    for (auto& word : words) {
      arguments.push_back(word.data());
    }
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    constexpr int to_file = O_WRONLY | O_CREAT | O_TRUNC;
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, (folder_ / "stdout").c_str(), to_file, 0600);
    posix_spawn_file_actions_addopen(&actions, 2, (folder_ / "stderr").c_str(), to_file, 0600);
    const int failed = posix_spawn(&process_, arguments[0], &actions, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    require(failed == 0, fmt::format("cannot start {}", words[0]));
  }

  gptqd::test::TemporaryFolder folder_;
  std::string token_ = fmt::format("token-{}-{}", getpid(), reinterpret_cast<std::uintptr_t>(this));
  pid_t process_ = -1;
  bool ended_ = false;
};

/// The job ends by itself with this code, one line of ours and no process left.
void expect_end(Job& job, int code, const ::testing::Matcher<const std::string&>& line) {
  EXPECT_EQ(job.wait(15s), code) << job.errors();
  EXPECT_THAT(job.our_lines(), ElementsAre(line)) << job.errors();
  EXPECT_TRUE(job.leaves_nothing_behind());
}

TEST(Fault, AnErrorOnOneRankEndsTheJobWithItsMessageAndCode) {
  for (const int guilty : {0, 1}) {
    Job job(2, "throw", guilty);
    expect_end(job, 65,
               HasSubstr(fmt::format("gptq-dist: rank {}: model.safetensors: truncated (block 3, mlp_in)", guilty)));
  }
}

TEST(Fault, AnErrorThatNamesTheActivityNamesItOnce) {
  Job job(2, "throw_known_activity", 1);
  expect_end(job, 74, ::testing::EndsWith("gptq-dist: rank 1: block 3, mlp_in: disk full"));
}

TEST(Fault, TheSameErrorOnAllRanksIsPrintedOnce) {
  Job job(4, "throw_on_all", 0);
  expect_end(job, 65, HasSubstr("config.json: hidden_size is missing"));
}

TEST(Fault, AForeignExceptionIsInternal) {
  Job job(3, "throw_foreign", 2);
  expect_end(job, 70, HasSubstr("gptq-dist: rank 2: not one of ours"));
}

TEST(Fault, AnExceptionThatUnwindsTheWorldEndsTheJob) {
  Job job(2, "unwind", 1);
  expect_end(job, 70, HasSubstr("gptq-dist: rank 1: an exception ended the run"));
}

TEST(Fault, AStoppedRankIsSilent) {
  Job job(2, "stop", 1);
  const auto start = Clock::now();
  expect_end(job, 70, HasSubstr("gptq-dist: rank 1 has been silent for 2 s (block 3, mlp_in)"));
  EXPECT_LT(Clock::now() - start, 10s);
}

TEST(Fault, ARankStoppedInAWaitIsSilent) {
  Job job(3, "stop_in_wait", 1);
  expect_end(job, 70, HasSubstr("gptq-dist: rank 1 has been silent for 2 s (block 3, mlp_in)"));
}

TEST(Fault, TheOthersNoticeThatRankZeroIsStopped) {
  Job job(3, "stop", 0);
  expect_end(job, 70, AllOf(HasSubstr("gptq-dist: rank 0 has been silent for"), HasSubstr("(block 3, mlp_in)")));
}

TEST(Fault, AKilledRankEndsTheJob) {
  for (const int guilty : {0, 1}) {
    Job job(2, "kill", guilty);
    EXPECT_THAT(job.wait(10s), ::testing::Optional(::testing::Ne(0)));
    EXPECT_THAT(job.our_lines(), SizeIs(::testing::Le(1u)));
    EXPECT_TRUE(job.leaves_nothing_behind());
  }
}

TEST(Fault, AComputationThatHangsIsNamed) {
  for (const int guilty : {0, 1}) {
    Job job(2, "hang", guilty);
    expect_end(job, 70,
               HasSubstr(fmt::format("gptq-dist: rank {} has made no progress for 2 s (block 3, mlp_in)", guilty)));
  }
}

TEST(Fault, AComputationThatHangsOnTheOnlyRankIsNamed) {
  Job job(1, "hang", 0);
  expect_end(job, 70, HasSubstr("gptq-dist: rank 0 has made no progress for 2 s"));
}

TEST(Fault, ADeadlockTellsWhoWaitsForWhat) {
  Job job(3, "deadlock", 0);
  expect_end(job, 70,
             AllOf(HasSubstr("rank 0 waits in hidden states, received from rank 1 (block 3, mlp_in)"),
                   HasSubstr("rank 2 waits in hidden states, received from rank 0")));
}

TEST(Fault, ARankThatLeavesEarlyIsADeadlock) {
  Job job(2, "leave_early", 1);
  expect_end(job, 70,
             AllOf(HasSubstr("rank 0 waits in hidden states"), HasSubstr("rank 1 waits in the end of the job")));
}

TEST(Fault, ASlowRankThatTicksIsWaitedFor) {
  Job job(2, "slow", 1);
  const auto start = Clock::now();
  EXPECT_EQ(job.wait(30s), 0) << job.errors();
  EXPECT_GE(Clock::now() - start, 6s);
  EXPECT_THAT(job.our_lines(), IsEmpty());
  EXPECT_TRUE(job.leaves_nothing_behind());
}

TEST(Fault, ALongHostStepIsWaitedFor) {
  Job job(2, "long_step", 0);
  EXPECT_EQ(job.wait(30s), 0) << job.errors();
  EXPECT_THAT(job.our_lines(), IsEmpty());
}

TEST(Fault, ASuspendedAndContinuedJobGoesOn) {
  // A rank that stops last and goes on first has nothing in hand that is younger than its own long sleep.
  for (const int last : {0, 1}) {
    Job job(2, "suspend", 0);
    ASSERT_TRUE(becomes_true(10s, [&] { return job.output().find("ready\nready\n") != std::string::npos; }))
        << job.errors();

    job.signal_rank(1 - last, SIGSTOP);
    std::this_thread::sleep_for(500ms);
    job.signal_rank(last, SIGSTOP);
    std::this_thread::sleep_for(3s);
    job.signal_rank(last, SIGCONT);
    std::this_thread::sleep_for(500ms);
    job.signal_rank(1 - last, SIGCONT);

    EXPECT_EQ(job.wait(20s), 0) << job.errors();
    EXPECT_THAT(job.our_lines(), IsEmpty());
  }
}

TEST(Fault, RanksThatSlurmStartedApartAreRefused) {
  Job job("SLURM_STEP_NUM_TASKS=4", "slow");

  EXPECT_EQ(job.wait(15s), 64);
  EXPECT_THAT(job.errors(), AllOf(HasSubstr("4 tasks"), HasSubstr("srun --mpi=pmix")));
  EXPECT_TRUE(job.leaves_nothing_behind());
}

}  // namespace
}  // namespace gptqd::comm
