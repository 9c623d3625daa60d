/// Ranks that exchange device data without end, until a signal meets one of them in the midst of it:
/// gptq_fault_program OPERATION SIGNAL GUILTY_RANK STALL_SECONDS. On GPUs where there are some, else on the CPU.
#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "comm/world.hpp"
#include "gptq/factorization.hpp"

namespace gptqd::gptq {
namespace {

using namespace std::chrono_literals;

/// One turn of each operation on its own data.
class Operations {
 public:
  Operations(comm::World& world, Backend& backend)
      : team_{.backend = backend,
              .stream = *stream_of(backend),
              .communicator = *communicator_of(world, backend),
              .group = world.group()},
        bytes_(backend.memory_kind() == MemoryKind::cuda ? std::int64_t{1} << 30 : std::int64_t{1} << 22),
        columns_(backend.memory_kind() == MemoryKind::cuda ? 16384 : 512),
        data_(backend.allocate(bytes_)) {
    backend.fill_zero(team_.stream, data_.data(), bytes_);
  }

  void run(const std::string& operation) {
    if (operation == "broadcast") {
      team_.communicator.broadcast(team_.stream, data_.data(), bytes_, 0, "weights of block 3").wait();
    } else if (operation == "all_gather") {
      comm::Gathered whole{.whole = data_.data(), .parts = {}};
      const std::int64_t part = bytes_ / team_.group.size();
      for (int r = 0; r < team_.group.size(); ++r) {
        whole.parts.push_back({.offset_bytes = r * part, .bytes = part});
      }
      team_.communicator.all_gather(team_.stream, {&whole, 1}, "codes");
    } else if (operation == "factorization") {
      QuantSpec spec;
      const Panels hessian(team_, PanelLayout(columns_, columns_ / 16), DType::f32);
      for (int k = 0; k < hessian.count(); ++k) {
        if (hessian.owns(k)) {
          team_.backend.fill_zero(team_.stream, hessian.view(k).data, hessian.bytes(k));
        }
      }
      const std::vector<double> diagonal(static_cast<std::size_t>(columns_), 1.0);
      factorize(team_, hessian, diagonal, spec);
    } else {
      throw Error(ErrorKind::usage, "expected broadcast, all_gather or factorization, got " + operation);
    }
    team_.stream.synchronize();
  }

 private:
  Stream* stream_of(Backend& backend) { return (stream_ = backend.create_stream()).get(); }
  comm::Communicator* communicator_of(comm::World& world, Backend& backend) {
    return (communicator_ = comm::make_communicator(world.group(), backend)).get();
  }

  std::unique_ptr<Stream> stream_;
  std::unique_ptr<comm::Communicator> communicator_;
  Team team_;
  std::int64_t bytes_;
  std::int64_t columns_;
  Buffer data_;
};

void run(comm::World& world, const std::string& operation, int signal, int guilty_rank) {
  const auto backend =
      cuda_device_count() > 0
          ? make_cuda_backend({.device = world.local_rank() % cuda_device_count(), .progress = &world.progress()})
          : make_cpu_backend({.threads = 1, .progress = &world.progress()});
  Operations operations(world, *backend);
  world.set_activity("block 3, " + operation);
  operations.run(operation);
  world.group().barrier("start");
  if (world.rank() == guilty_rank) {
    std::thread([signal] {
      std::this_thread::sleep_for(700ms);
      std::cout << "now" << std::endl;
      std::raise(signal == SIGKILL ? SIGKILL : SIGSTOP);
    }).detach();
  }
  for (;;) {
    operations.run(operation);
  }
}

}  // namespace
}  // namespace gptqd::gptq

int main(int argc, char** argv) {
  const std::map<std::string, int> signals{{"kill", SIGKILL}, {"stop", SIGSTOP}};
  if (argc != 5 || !signals.contains(argv[2])) {
    return EXIT_FAILURE;
  }
  const auto world = gptqd::comm::World::start({.stall_seconds = std::atof(argv[4])});
  try {
    gptqd::gptq::run(*world, argv[1], signals.at(argv[2]), std::atoi(argv[3]));
  } catch (const gptqd::Error& error) {
    world->fail(error);
  }
}
