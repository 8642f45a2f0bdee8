// The placement in force, read onto today's live GPUs, and made whole where GPUs died, came or changed size.
#pragma once

#include <cstdint>
#include <vector>

#include "problem.h"
#include "quantise.h"

namespace gimbal {

struct Incumbent {
  std::vector<uint8_t> held;   // [experts][stride]: copies the incumbent has on each live GPU
  std::vector<int32_t> start;  // [gpus][slots]: a valid placement nearest to the incumbent
  int32_t forced = 0;          // new pairs in `start`: no whole placement has fewer
};

// Checks every layer's entries. Throws Error that names the slot.
void check_incumbent(const ProblemInput& input);

// `heat` [experts] says which experts deserve the slots that the incumbent leaves empty.
Incumbent read_incumbent(const ProblemInput& input, const Quantised& problem, int32_t layer,
                         const int64_t* heat);

}  // namespace gimbal
