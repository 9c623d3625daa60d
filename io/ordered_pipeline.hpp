#pragma once
/// @file Work that several threads prepare and one finishes in order.
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

namespace gptqd::io {

/// consume(prepare(i)) for i = 0, 1, ..., count − 1: consume in that order on the calling thread, prepare on `threads`
/// threads that are at most `ahead` items further.
///
/// @throws what prepare of the lowest i that failed threw, after everything before i was consumed; what consume throws
template <class Prepare, class Consume>
void ordered_pipeline(std::int64_t count, int threads, std::int64_t ahead, const Prepare& prepare,
                      const Consume& consume) {
  using Item = decltype(prepare(std::int64_t{0}));
  using Outcome = std::variant<std::exception_ptr, Item>;
  std::mutex mutex;
  std::condition_variable room;
  std::condition_variable ready;
  std::map<std::int64_t, Outcome> prepared;
  std::int64_t next = 0;
  std::int64_t consumed = 0;
  bool stopped = false;

  const auto work = [&] {
    std::unique_lock lock(mutex);
    for (;;) {
      room.wait(lock, [&] { return stopped || next >= count || next < consumed + ahead; });
      if (stopped || next >= count) {
        return;
      }
      const std::int64_t index = next++;
      lock.unlock();
      Outcome outcome;
      try {
        outcome = prepare(index);
      } catch (...) {
        outcome = std::current_exception();
      }
      lock.lock();
      prepared.emplace(index, std::move(outcome));
      ready.notify_one();
    }
  };
  std::vector<std::thread> workers;
  const auto stop = [&] {
    {
      const std::lock_guard lock(mutex);
      stopped = true;
    }
    room.notify_all();
    for (auto& worker : workers) {
      worker.join();
    }
  };
  try {
    for (int i = 0; i < threads; ++i) {
      workers.emplace_back(work);
    }
    for (std::int64_t i = 0; i < count; ++i) {
      Outcome outcome;
      {
        std::unique_lock lock(mutex);
        ready.wait(lock, [&] { return prepared.contains(i); });
        outcome = std::move(prepared.extract(i).mapped());
      }
      if (outcome.index() == 0) {
        std::rethrow_exception(std::get<0>(outcome));
      }
      consume(std::get<1>(std::move(outcome)));
      {
        const std::lock_guard lock(mutex);
        consumed = i + 1;
      }
      room.notify_all();
    }
  } catch (...) {
    stop();
    throw;
  }
  stop();
}

}  // namespace gptqd::io
