/// @file A wall clock that jumps to and fro by days, several times a second, for programs that load this first
/// (LD_PRELOAD). The monotonic clock goes on as it is.
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <ctime>

namespace {

constexpr long day = 86400;
constexpr long milliseconds_between_jumps = 300;

timespec time_of(clockid_t clock) {
  timespec time{};
  syscall(SYS_clock_gettime, clock, &time);
  return time;
}

timespec wall_clock() {
  const timespec steady = time_of(CLOCK_MONOTONIC);
  timespec wall = time_of(CLOCK_REALTIME);
  // To and fro, and soon ahead of any time that it showed before.
  const long jumps = (steady.tv_sec * 1000 + steady.tv_nsec / 1000000) / milliseconds_between_jumps % 100;
  wall.tv_sec += (jumps % 2 == 0 ? 2 * jumps : jumps) * day;
  return wall;
}

}  // namespace

extern "C" {

int clock_gettime(clockid_t clock, timespec* time) noexcept {
  if (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE) {
    return static_cast<int>(syscall(SYS_clock_gettime, clock, time));
  }
  *time = wall_clock();
  return 0;
}

int gettimeofday(timeval* __restrict time, void* __restrict) noexcept {
  const timespec wall = wall_clock();
  *time = {.tv_sec = wall.tv_sec, .tv_usec = wall.tv_nsec / 1000};
  return 0;
}

time_t time(time_t* result) noexcept {
  const timespec wall = wall_clock();
  if (result != nullptr) {
    *result = wall.tv_sec;
  }
  return wall.tv_sec;
}

}  // extern "C"
