/// A job of which one rank, or all, goes wrong in the way that the command line names:
/// comm_fault_program MODE GUILTY_RANK STALL_SECONDS TOKEN. The token marks the processes for whoever looks for them.
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <iostream>
#include <stdexcept>
#include <string>
#include <thread>

#include "comm/world.hpp"

namespace gptqd::comm {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

void tick_for(World& world, std::chrono::duration<double> duration) {
  for (const auto end = Clock::now() + duration; Clock::now() < end; std::this_thread::sleep_for(20ms)) {
    world.progress().tick();
  }
}

void misbehave(World& world, const std::string& mode, int guilty_rank, double stall_seconds) {
  const bool guilty = world.rank() == guilty_rank;
  std::byte nothing[4]{};
  world.set_activity("block 3, mlp_in");
  world.group().barrier("start");
  if (mode == "throw_on_all") {
    throw Error(ErrorKind::input, "config.json: hidden_size is missing");
  }
  if (mode == "deadlock") {
    world.group().receive(nothing, (world.rank() + 1) % world.size(), "hidden states");
  }
  if (mode == "suspend") {
    std::cout << "ready" << std::endl;
    tick_for(world, std::chrono::duration<double>(2 * stall_seconds));
  }
  if (guilty) {
    if (mode == "throw") {
      throw Error(ErrorKind::input, "model.safetensors: truncated");
    } else if (mode == "throw_known_activity") {
      throw Error(ErrorKind::io, "block 3, mlp_in: disk full");
    } else if (mode == "throw_foreign") {
      throw std::runtime_error("not one of ours");
    } else if (mode == "stop") {
      tick_for(world, 300ms);  // a report of the activity gets through
      std::raise(SIGSTOP);
    } else if (mode == "kill") {
      std::raise(SIGKILL);
    } else if (mode == "hang") {
      for (;;) {
        std::this_thread::sleep_for(1s);
      }
    } else if (mode == "slow") {
      tick_for(world, std::chrono::duration<double>(3 * stall_seconds));
    } else if (mode == "long_step") {
      const auto step = world.long_host_step("tokenizing calibration text");
      std::this_thread::sleep_for(std::chrono::duration<double>(2 * stall_seconds));
    } else if (mode == "stop_in_wait") {
      std::thread([] {
        std::this_thread::sleep_for(300ms);
        kill(getpid(), SIGSTOP);
      }).detach();
    } else if (mode == "leave_early") {
      return;
    }
  }
  if (mode == "stop_in_wait" && !guilty) {
    tick_for(world, std::chrono::duration<double>(stall_seconds / 4));
    if (world.rank() == (guilty_rank + 1) % world.size()) {
      tick_for(world, 20s);
    }
  }
  if (mode == "leave_early") {
    world.group().receive(nothing, guilty_rank, "hidden states");
  }
  world.group().barrier("weights of block 3");
}

int run(const std::string& mode, int guilty_rank, double stall_seconds) {
  const auto world = World::start({.stall_seconds = stall_seconds});
  if (mode == "unwind") {
    if (world->rank() == guilty_rank) {
      throw Error(ErrorKind::input, "nobody hands this to fail()");
    }
    world->group().barrier("start");
  }
  try {
    misbehave(*world, mode, guilty_rank, stall_seconds);
    world->finish();
  } catch (const Error& error) {
    world->fail(error);
  } catch (const std::exception& error) {
    world->fail(Error(ErrorKind::internal, error.what()));
  }
  return EXIT_SUCCESS;
}

}  // namespace
}  // namespace gptqd::comm

int main(int argc, char** argv) {
  if (argc != 5) {
    return EXIT_FAILURE;
  }
  try {
    return gptqd::comm::run(argv[1], std::atoi(argv[2]), std::atof(argv[3]));
  } catch (const gptqd::Error& error) {
    std::cerr << "error: " << error.message() << std::endl;
    return gptqd::exit_code(error.kind());
  }
}
