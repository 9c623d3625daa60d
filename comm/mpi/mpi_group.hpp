#pragma once
/// @file Group over an MPI communicator.
#include <mpi.h>

#include <memory>
#include <string_view>
#include <vector>

#include "comm/group.hpp"
#include "comm/job_state.hpp"

namespace gptqd::comm {

/// @throws Error (internal) with MPI's own text unless `code` is MPI_SUCCESS
void check_mpi(int code, std::string_view doing);

/// Owns an MPI communicator; its errors come back as codes. Left alone once MPI ends.
class CommHandle {
 public:
  CommHandle(std::shared_ptr<JobState> job, MPI_Comm comm);
  CommHandle(const CommHandle&) = delete;
  CommHandle& operator=(const CommHandle&) = delete;
  ~CommHandle();

  MPI_Comm get() const { return comm_; }
  int rank() const { return rank_; }
  int size() const { return size_; }

 private:
  std::shared_ptr<JobState> job_;
  MPI_Comm comm_;
  int rank_ = 0;
  int size_ = 1;
};

class MpiGroup final : public Group {
 public:
  /// Takes over `comm`.
  MpiGroup(std::shared_ptr<JobState> job, MPI_Comm comm);

  int rank() const override { return comm_.rank(); }
  int size() const override { return comm_.size(); }
  int world_rank(int rank) const override { return world_ranks_.at(static_cast<std::size_t>(rank)); }

  void barrier(std::string_view what) override;
  std::vector<std::int64_t> all_gather(std::int64_t value, std::string_view what) override;
  Request isend(std::span<const std::byte> data, int peer, std::string_view what) override;
  Request ireceive(std::span<std::byte> data, int peer, std::string_view what) override;
  Request ibroadcast(std::span<std::byte> data, int root, std::string_view what) override;
  std::unique_ptr<Group> split(int color, int key) override;
  void wait_until(std::string_view what, const std::function<bool()>& done) override;

 private:
  void require_member(int rank, std::string_view what) const;

  std::shared_ptr<JobState> job_;
  CommHandle comm_;
  std::vector<int> world_ranks_;
};

}  // namespace gptqd::comm
