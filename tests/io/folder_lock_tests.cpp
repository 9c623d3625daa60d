#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <nlohmann/json.hpp>

#include "io/folder_lock.hpp"
#include "kernels/base/fault_point.hpp"
#include "tests/io/file_support.hpp"
#include "tests/support/run_command.hpp"

namespace gptqd::io {
namespace {

using namespace std::chrono_literals;
using gptqd::test::becomes_true;
using gptqd::test::TemporaryFolder;
using test::error_of;
using test::read_text;
using test::write_text;
using testing::AllOf;
using testing::HasSubstr;

constexpr LockTimes quick{.beat = 20ms, .patience = 200ms};

class FolderLockTest : public ::testing::Test {
 protected:
  std::unique_ptr<FolderLock> take() {
    return std::make_unique<FolderLock>(
        path_, [] { return std::string("block 3, mlp_in"); }, [this](const Error&) { ++losses_; }, quick);
  }
  /// The lock's file as it would be with these fields.
  void edit(const nlohmann::json& changes) {
    auto json = nlohmann::json::parse(read_text(path_));
    json.update(changes);
    write_text(path_, json.dump());
  }

  /// The file of a lock that nobody holds.
  void leave_lock(const nlohmann::json& changes) {
    write_text(path_, [&] {
      const auto lock = take();
      return read_text(path_);
    }());
    edit(changes);
  }
  /// Of taking it while its counter is raised.
  Error error_while_it_beats() {
    std::atomic<bool> beating{true};
    std::thread holder([&] {
      for (int beats = 1; beating; ++beats) {
        edit({{"beats", beats}});
        std::this_thread::sleep_for(30ms);
      }
    });
    Error error = error_of([&] { take(); });
    beating = false;
    holder.join();
    return error;
  }

  TemporaryFolder folder_;
  std::filesystem::path path_ = folder_ / "lock";
  std::atomic<int> losses_{0};
};

TEST_F(FolderLockTest, IsThereWhileItIsHeldAndSaysWhoHoldsIt) {
  EXPECT_EQ(look_at_lock(path_, quick).state, LockState::free);
  {
    const auto lock = take();
    const auto status = look_at_lock(path_, quick);

    EXPECT_EQ(status.state, LockState::held);
    EXPECT_EQ(status.holder->pid, getpid());
    EXPECT_THAT(status.holder->describe(), AllOf(HasSubstr("process"), HasSubstr("ago): block 3, mlp_in")));
    EXPECT_FALSE(lock->taken_over().has_value());
  }
  EXPECT_FALSE(std::filesystem::exists(path_));
  EXPECT_EQ(losses_, 0);
}

TEST_F(FolderLockTest, IsRefusedWhileItsHolderLives) {
  const auto lock = take();

  const Error error = error_of([&] { take(); });

  EXPECT_EQ(error.kind(), ErrorKind::usage);
  EXPECT_THAT(error.message(),
              AllOf(HasSubstr("is in use by process " + std::to_string(getpid())), HasSubstr("--work")));
}

TEST_F(FolderLockTest, OfAProcessThatIsGoneIsTakenOver) {
  const pid_t child = fork();
  if (child == 0) {
    const auto lock = take();
    _exit(0);  // without an orderly end
  }
  siginfo_t ended{};
  waitid(P_PID, static_cast<id_t>(child), &ended, WEXITED | WNOWAIT);
  EXPECT_EQ(look_at_lock(path_, quick).state, LockState::stale) << "its parent has not asked for it yet";
  waitpid(child, nullptr, 0);
  EXPECT_EQ(look_at_lock(path_, quick).state, LockState::stale);

  const auto lock = take();

  EXPECT_EQ(lock->taken_over()->holder->pid, child);
  EXPECT_EQ(look_at_lock(path_, quick).holder->pid, getpid());
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_.path()), {}), 1);
}

TEST_F(FolderLockTest, OfAnotherProcessWithTheSameIdIsTakenOver) {
  leave_lock(nlohmann::json::object());
  const auto start = nlohmann::json::parse(read_text(path_)).at("start").get<std::string>();
  edit({{"start", start + "7"}});

  EXPECT_EQ(look_at_lock(path_, quick).state, LockState::stale);
  EXPECT_TRUE(take()->taken_over().has_value());
}

TEST_F(FolderLockTest, OfAnotherHostIsJudgedByItsBeatsNotByClocks) {
  leave_lock({{"host", "elsewhere"}, {"began", 1'000'000'000'000}});  // its clock, or ours, is thousands of years off
  EXPECT_EQ(look_at_lock(path_, quick).state, LockState::stale);
  EXPECT_THAT(look_at_lock(path_, quick).holder->describe(), HasSubstr("in the future by this machine's clock"));

  const Error error = error_while_it_beats();

  EXPECT_THAT(error.message(), HasSubstr("on elsewhere"));
  EXPECT_TRUE(take()->taken_over().has_value());
}

TEST_F(FolderLockTest, OfAContainerThatIsNamedLikeThisMachineIsJudgedByItsBeats) {
  leave_lock({{"start", "another-boot pid:[4026531836] 4711"}});  // its process ids mean nothing here

  const Error error = error_while_it_beats();

  EXPECT_EQ(error.kind(), ErrorKind::usage);
  EXPECT_THAT(error.message(), HasSubstr("is in use"));
  EXPECT_TRUE(take()->taken_over().has_value());
}

TEST_F(FolderLockTest, BeatsForOthersToSee) {
  const auto lock = take();

  EXPECT_TRUE(becomes_true(5, [&] { return look_at_lock(path_, quick).holder->beats >= 3; }));
}

TEST_F(FolderLockTest, ABeatThatFailsIsNoLoss) {
  set_faults("lock.heartbeat:eio:1+");
  {
    const auto lock = take();
    std::this_thread::sleep_for(5 * quick.beat);

    EXPECT_EQ(look_at_lock(path_, quick).state, LockState::held);
  }
  set_faults("");
  EXPECT_EQ(losses_, 0);
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(FolderLockTest, WhoFindsItStaleTooLateLeavesItToTheWinner) {
  leave_lock({{"pid", 0}});
  set_faults("lock.take-over:slow");
  Error error(ErrorKind::internal, "no error");
  std::thread late([&] { error = error_of([&] { take(); }); });
  std::this_thread::sleep_for(300ms);

  const auto winner = take();
  late.join();
  set_faults("");

  EXPECT_TRUE(winner->taken_over().has_value());
  EXPECT_EQ(error.kind(), ErrorKind::usage);
  EXPECT_THAT(error.message(), HasSubstr("is in use by process " + std::to_string(getpid())));
  std::this_thread::sleep_for(3 * quick.beat);
  EXPECT_EQ(losses_, 0);
  EXPECT_EQ(look_at_lock(path_, quick).state, LockState::held);
}

TEST_F(FolderLockTest, AFileThatIsNoLockIsTakenOverAfterAWhile) {
  for (const char* text : {"", "{", "[1, 2]", R"({"host": 3})"}) {
    write_text(path_, text);

    EXPECT_EQ(look_at_lock(path_, quick).state, LockState::stale) << text;
    EXPECT_NO_THROW(take()) << text;
  }
}

TEST_F(FolderLockTest, AHolderThatLostItIsToldAndLeavesTheNewOnesAlone) {
  std::unique_ptr<FolderLock> second;
  {
    const auto first = take();
    std::filesystem::remove(path_);  // as one does that takes it over
    second = take();
    ASSERT_TRUE(becomes_true(5, [&] { return losses_ == 1; }));
  }
  EXPECT_EQ(losses_, 1);
  EXPECT_EQ(look_at_lock(path_, quick).state, LockState::held);
}

TEST_F(FolderLockTest, InAFolderThatIsNotThereIsAnErrorWithAName) {
  path_ = folder_ / "absent/lock";

  const Error error = error_of([&] { take(); });

  EXPECT_EQ(error.kind(), ErrorKind::io);
  EXPECT_THAT(error.message(), AllOf(HasSubstr("absent/lock"), HasSubstr("No such file")));
}

}  // namespace
}  // namespace gptqd::io
