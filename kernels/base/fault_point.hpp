#pragma once
/// @file Faults on purpose, for testers: GPTQ_DIST_FAULT=point[@rank]:action[:count[+]][,...] (docs/interruptions.md).
///
/// A point is a place where a run can be made to die, hang or fail: before and after each step that changes the disk,
/// at the phases of a block, at the messages between ranks. The `count`-th passage of the point (1 unless told; with a
/// + this one and all that follow) does what the action says:
///  - kill, stop, term, usr1: this process gets the signal (SIGKILL, SIGSTOP, SIGTERM, SIGUSR1)
///  - throw: an Error (internal) leaves the point; no-memory: std::bad_alloc does
///  - hang: this thread sleeps for ever; slow: for a second
///  - lose-device, hang-device: from here on every call of the rank's device fails; its next work never ends
///  - enospc, edquot, eio, erofs, eacces, estale, efbig, einval, enotsup, eintr, eagain: the operation fails with this
///    errno
/// A line on stderr says so when one acts. Without the variable a point costs a load and a branch.
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace gptqd {

/// Every point that exists, in the order in which a run meets them first.
std::span<const std::string_view> fault_points();

/// Does what GPTQ_DIST_FAULT asks for at this passage. Thread-safe.
/// @throws Error (internal) for throw, and (io) for an errno; std::bad_alloc for no-memory
void fault_point(std::string_view point);

/// The same in front of a system call: the errno to fail with, or 0.
/// @throws Error (internal) for throw
int fault_errno(std::string_view point);

/// What has become of this process's device by a fault: backends ask before they work, and make it come true.
enum class DeviceFault : std::uint8_t { none, lost, hangs };
DeviceFault device_fault() noexcept;

/// What GPTQ_DIST_FAULT asks for, for the log; empty when it is not set.
/// @throws Error (usage) when it cannot be understood: nothing that a tester asked for is left undone in silence
std::string describe_faults();

/// Takes `setting` for the variable's value from now on, all passages uncounted, the device whole: for tests within one
/// process. No other thread may be at a point meanwhile.
void set_faults(std::string_view setting);

}  // namespace gptqd
