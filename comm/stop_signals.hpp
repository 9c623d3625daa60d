#pragma once
/// @file Signals that ask a run to stop. Internal to comm.
#include <cstdint>
#include <string>

namespace gptqd::comm {

/// How soon a job has to end.
enum class StopLevel : std::uint8_t {
  none,
  orderly,  ///< at the next boundary that all ranks agree on
  at_once,  ///< within a second; what is on disk is complete at any instant
};

/// What has been asked for, and by what: "SIGUSR1", "a second SIGUSR1", "SIGTERM".
struct StopRequest {
  StopLevel level = StopLevel::none;
  std::string cause{};
};

/// While it lives, signals set flags instead of ending this process. One object a process: a handler needs one place
/// for its flags.
///
///  - SIGUSR1 asks for an orderly stop; a second one, a second after the first or later, to stop at once. (A launcher
///    and its daemons may both pass on the same signal, which counts once.)
///  - SIGTERM, SIGINT, SIGHUP ask to stop at once, from listen_to_all() on: before, somebody has to be able to end a
///    program that hangs in its start. One that is ignored (nohup) stays ignored.
class StopSignals {
 public:
  /// SIGUSR1 from now on.
  StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  /// The handlers of before; SIGUSR1 is ignored from now on, for one that comes late must not spoil a finished job.
  ~StopSignals();

  void listen_to_all();

  /// Thread-safe. None where no object lives.
  static StopRequest requested();
};

}  // namespace gptqd::comm
