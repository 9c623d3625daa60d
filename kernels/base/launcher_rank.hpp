#pragma once
/// @file Which rank this process is before, or without, MPI.

namespace gptqd {

/// This process's rank as its launcher's environment tells it (OMPI_COMM_WORLD_RANK, PMIX_RANK, SLURM_PROCID), 0 if
/// none does: so that errors before World::start are printed once.
int launcher_rank();

}  // namespace gptqd
