#include "comm/process_grid.hpp"

#include "comm/world.hpp"

namespace gptqd::comm {

GridCoordinates coordinates(int rank, GridShape shape) {
  require(rank >= 0 && rank < shape.stages * shape.replicas,
          fmt::format("rank {} is outside a grid of {} stages x {} replicas", rank, shape.stages, shape.replicas));
  return {.stage = rank / shape.replicas, .replica = rank % shape.replicas};
}

int rank_of(GridCoordinates coordinates, GridShape shape) {
  require(coordinates.stage >= 0 && coordinates.stage < shape.stages && coordinates.replica >= 0 &&
              coordinates.replica < shape.replicas,
          fmt::format("stage {}, replica {} is outside a grid of {} stages x {} replicas", coordinates.stage,
                      coordinates.replica, shape.stages, shape.replicas));
  return coordinates.stage * shape.replicas + coordinates.replica;
}

GridShape grid_shape(int ranks, int stages) {
  if (stages < 1 || ranks % stages != 0) {
    throw Error(ErrorKind::usage,
                fmt::format("cannot cut {} ranks into {} stages: each stage needs the same number of ranks; choose a "
                            "number of stages that divides {}, or start another number of ranks",
                            ranks, stages, ranks));
  }
  return {.stages = stages, .replicas = ranks / stages};
}

ProcessGrid::ProcessGrid(World& world, int stages)
    : shape_(grid_shape(world.size(), stages)),
      here_(coordinates(world.rank(), shape_)),
      replicas_group_(world.group().split(here_.stage, here_.replica)) {}

int ProcessGrid::previous_stage_rank() const { return stage() == 0 ? -1 : world_rank(stage() - 1, replica()); }

int ProcessGrid::next_stage_rank() const { return stage() + 1 == stages() ? -1 : world_rank(stage() + 1, replica()); }

}  // namespace gptqd::comm
