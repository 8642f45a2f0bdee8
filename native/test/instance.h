// Random placement problems for the tests: small, but with every feature that the model has, and with the degenerate shapes
// where mistakes hide (one GPU, no slack, equal tokens, no traffic, free communication, dead GPUs, foreign incumbents).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../model/problem.h"
#include "../model/quantise.h"
#include "random.h"

namespace gimbal {
namespace test {

// A problem that owns its arrays.
struct Instance {
  ProblemInput input;
  std::vector<uint32_t> tokens;    // [layers][sources][experts]
  std::vector<int32_t> incumbent;  // [layers][incumbent_gpus * incumbent_slots_per_gpu]

  Instance() = default;
  Instance(const Instance&) = delete;
  Instance& operator=(const Instance&) = delete;

  const ProblemInput& problem() {
    input.tokens = tokens.data();
    input.incumbent = incumbent.empty() ? nullptr : incumbent.data();
    return input;
  }
};

struct DrawLimits {
  int32_t layers = 2;
  int32_t sources = 5;
  int32_t experts = 24;
  int32_t gpus = 20;
  int32_t slots = 6;
  bool incumbents = true;
  bool budgets = true;
};

std::unique_ptr<Instance> draw_instance(Random& random, const DrawLimits& limits = {});

// One line that tells the instance's features, for failure messages.
std::string describe(const Instance& instance);

// A placement [gpus * slots] over all GPUs that keeps the hard constraints; -1 on dead GPUs.
std::vector<int32_t> draw_placement(Random& random, const ProblemInput& in, const Quantised& q);

// The same over the live GPUs only, [live gpus][slots].
std::vector<int32_t> live_part(const Quantised& q, const int32_t* placement);

// Every placement [live gpus][slots] of one layer that keeps the hard constraints, up to the order inside a GPU.
std::vector<std::vector<int32_t>> all_placements(const ProblemInput& in, const Quantised& q, int32_t layer);

// Writes a placement over live GPUs [live gpus][slots] into the caller's numbering, -1 on dead GPUs.
std::vector<int32_t> over_all_gpus(const Quantised& q, const int32_t* live);

}  // namespace test
}  // namespace gimbal
