// What the solver gives back: the placement, its cost by term, and the certificate.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace gimbal {

// The cost of one layer under one placement. Times are nanoseconds over the statistics window.
struct LayerReport {
  double objective_ns = 0;
  double load_max_ns = 0;
  double comm_max_ns = 0;
  double comm_total_ns = 0;
  double source_max_ns = 0;     // the busiest sender; reported, not part of J
  int64_t migrations = 0;       // new (expert, gpu) pairs, the forced ones included
  int64_t forced_migrations = 0;  // of these, the ones no plan could avoid (dead or new GPUs); outside the budget
  double lower_bound_ns = 0;    // proved: no placement of this layer costs less
  double gap = 0;               // objective / lower_bound - 1; 0 where both are 0, infinity where only the bound is
};

struct Plan {
  std::vector<int32_t> physical_to_logical;  // [layers][gpus * slots_per_gpu], -1 on a dead GPU's slots
  std::vector<int32_t> replica_count;        // [layers][experts]
  std::vector<LayerReport> layers;           // [layers]
  double objective_ns = 0;                   // sum over layers
  double lower_bound_ns = 0;                 // sum over layers, or the budget's dual bound where that is larger
  double gap = 0;
  int64_t migrations = 0;
  int64_t forced_migrations = 0;
  std::string backend;         // "cpu" or "cuda": the one that ran
  std::string backend_detail;  // e.g. the vector width the CPU backend chose
  std::string backend_reason;  // where the choice was free and no GPU was taken: why; else empty
  uint64_t seed = 0;
  int32_t walkers = 0;
  int32_t rounds = 0;  // rounds each walker ran; fewer than asked for where a time limit stopped it
  double elapsed_ms = 0;
  double kernel_ms = 0;  // of these, in kernels of the GPU
};

// Costs of many placements, each array [candidates][layers].
struct Evaluation {
  std::vector<double> objective_ns;
  std::vector<double> load_max_ns;
  std::vector<double> comm_max_ns;
  std::vector<double> comm_total_ns;
  std::vector<double> migrations;
  std::string backend;         // as a plan's
  std::string backend_reason;
  double kernel_ms = 0;  // in kernels of the GPU, for all of them
};

}  // namespace gimbal
