// The search's state from its definition: every count, price and sum of a placement, in search units, the slow and plain
// way. Shares no code with spec/search.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../spec/layer.h"

namespace gimbal {
namespace test {

struct Recount {
  std::vector<int32_t> copies;    // [experts][stride]
  std::vector<int32_t> replicas;  // [experts]
  std::vector<int64_t> load;      // [slots][stride]
  std::vector<int64_t> comm;      // [slots][stride]
  std::vector<int64_t> part;      // [slots][stride]: of the total communication
  std::vector<int64_t> gpu_load;  // [stride]
  std::vector<int64_t> gpu_comm;
  std::vector<int64_t> gpu_linear;
  std::vector<int64_t> gpu_new;   // slots whose pair the incumbent lacks
  int64_t new_slots = 0;
  int64_t value = 0;  // the objective in search units, at the view's own price
};

// `expert` is [slots][stride].
Recount recount(const spec::LayerView& v, const int32_t* expert);
// The same for a placement [gpus][slots].
Recount recount_placement(const spec::LayerView& v, const std::vector<int32_t>& placement);

// Every hard constraint that the placement [slots][stride] breaks in search terms; empty where it is valid.
std::vector<std::string> broken_constraints(const spec::LayerView& v, const int32_t* expert);

}  // namespace test
}  // namespace gimbal
