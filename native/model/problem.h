// The placement problem as a caller states it: counts, costs in nanoseconds, and the placement in force.
// Nothing here is quantised; model/quantise.h turns it into integers once, and everything after that is integer.
#pragma once

#include <cstdint>
#include <vector>

namespace gimbal {

// How a token finds one of an expert's replicas. Engines differ, so the problem says which rule the engine follows.
enum class ReplicaChoice : uint8_t {
  kEven,     // every replica takes an equal share (vLLM, TensorRT-LLM, SGLang "dynamic")
  kNearest,  // a source uses only its cheapest replicas, evenly among ties (the expectation of SGLang "static")
};

// Dimensionless weights of the objective J. All terms are times, so weights of 1 add times.
struct Weights {
  double load = 1.0;
  double comm_max = 1.0;
  double comm_total = 0.1;
  double migration = 1.0;
};

// A view: the arrays it points to must outlive the call that reads them.
struct ProblemInput {
  int32_t layers = 0;
  int32_t sources = 0;
  int32_t experts = 0;
  int32_t gpus = 0;
  int32_t slots_per_gpu = 0;
  const uint32_t* tokens = nullptr;     // [layers][sources][experts], tokens in the statistics window
  std::vector<double> compute_cost_ns;  // [gpus], ns per token
  std::vector<double> comm_cost_ns;     // [sources][gpus], ns per token, there and back
  ReplicaChoice replica_choice = ReplicaChoice::kEven;
  Weights weights;
  double migration_cost_ns = 0.0;  // per new (expert, gpu) pair, prorated to the statistics window
  int64_t migration_budget = -1;   // new pairs allowed over all layers beyond the forced ones; -1: no limit
  const int32_t* incumbent = nullptr;  // [layers][incumbent_gpus * incumbent_slots_per_gpu], -1 = empty; null: none
  int32_t incumbent_gpus = 0;          // may differ from gpus (elastic scaling); GPU ids keep their meaning
  int32_t incumbent_slots_per_gpu = 0;
  std::vector<int32_t> dead_gpus;
  bool allow_duplicates = false;
};

}  // namespace gimbal
