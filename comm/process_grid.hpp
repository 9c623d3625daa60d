#pragma once
/// @file Which rank holds which stage of the model and which slice of the calibration samples.
#include <memory>

#include "comm/group.hpp"

namespace gptqd::comm {

class World;

struct GridShape {
  int stages = 1;
  int replicas = 1;
};

struct GridCoordinates {
  int stage = 0;
  int replica = 0;
  bool operator==(const GridCoordinates&) const = default;
};

/// rank = stage * replicas + replica.
///
/// Replicas vary fastest: those of a stage exchange the large messages, and launchers put neighbouring ranks on one
/// node. An expert axis becomes a third coordinate of both structs, rank = (stage * experts + expert) * replicas +
/// replica; only these two functions know the formula.
/// @throws Error (internal) for a rank or coordinate outside the shape
GridCoordinates coordinates(int rank, GridShape shape);
int rank_of(GridCoordinates coordinates, GridShape shape);

/// The shape for a world of `ranks` ranks cut into `stages` stages.
/// @throws Error (usage) naming both numbers unless stages >= 1 divides ranks
GridShape grid_shape(int ranks, int stages);

/// The World as stages x replicas.
class ProcessGrid {
 public:
  /// Collective over the world. @throws what grid_shape() throws
  ProcessGrid(World& world, int stages);

  int stage() const { return here_.stage; }
  int replica() const { return here_.replica; }
  int stages() const { return shape_.stages; }
  int replicas() const { return shape_.replicas; }
  /// The ranks of my stage; the rank in it is the replica.
  Group& replicas_group() { return *replicas_group_; }
  int world_rank(int stage, int replica) const { return rank_of({.stage = stage, .replica = replica}, shape_); }
  /// World rank of the same replica one stage before or after; -1 if there is none.
  int previous_stage_rank() const;
  int next_stage_rank() const;

 private:
  GridShape shape_;
  GridCoordinates here_;
  std::unique_ptr<Group> replicas_group_;
};

}  // namespace gptqd::comm
