// Where floating point ends: a checked problem in integers, over the live GPUs only.
#pragma once

#include <cstdint>
#include <vector>

#include "../spec/types.h"
#include "problem.h"

namespace gimbal {

struct Quantised {
  int32_t layers = 0;
  int32_t sources = 0;
  int32_t experts = 0;
  int32_t gpus = 0;       // live GPUs, renumbered from 0
  int32_t all_gpus = 0;
  int32_t slots = 0;      // per GPU
  bool nearest = false;
  bool allow_duplicates = false;
  bool uniform_compute = true;
  const uint32_t* tokens = nullptr;    // [layers][sources][experts]
  std::vector<int32_t> gpu_id;         // [gpus]: the caller's id of each live GPU
  std::vector<int32_t> live_index;     // [all_gpus]: -1 for a dead GPU
  std::vector<uint32_t> compute_cost;  // [gpus]
  std::vector<uint32_t> comm_cost;     // [sources][gpus]
  spec::FineWeights weights;
  double cost_unit_ns = 1.0;       // ns of one unit of load and communication
  double objective_unit_ns = 1.0;  // ns of one unit of J
  int64_t migration_budget = -1;
};

// Throws Error that names the field. Reads every token once, to bound the sums.
Quantised quantise(const ProblemInput& input);

}  // namespace gimbal
