// What goes into and comes out of filling a layer's tables (tables.h).
#pragma once

#include "layer.h"
#include "units.h"

namespace gimbal {
namespace spec {

// comm_cost split by rows into a base and the few GPUs that differ from it (same node, same GPU): an exact identity that
// turns sources * experts * gpus products into about sources * experts * gpus_per_node.
struct CostPattern {
  const u32* base = nullptr;      // [sources]: the row's most frequent cost
  const i32* first = nullptr;     // [gpus + 1]: where each GPU's exceptions begin
  const i32* source = nullptr;    // [exceptions]
  const u32* magnitude = nullptr;  // [exceptions]: |comm_cost - base|
  const u8* below = nullptr;       // [exceptions]: 1 where the cost is below the base
};

// How far fine values are shifted down to become search values, and the factors that fold the weights in.
struct SearchScale {
  int shift = 0;
  u32 comm_weight = 0;  // Q31: the greater of the busiest GPU's and the total's weight
  CommTerm comm_term = CommTerm::kAbsent;
  u32 max_scale = 0;
  u32 total_scale = 0;
};

// Where a backend keeps one layer's search tables.
struct SearchTables {
  i32* load = nullptr;    // [experts], or [experts][stride] where compute costs differ
  i32* load_t = nullptr;  // the same array, or [gpus][experts]
  i32* comm = nullptr;    // [experts][stride]
  i32* comm_t = nullptr;  // [gpus][experts]
  i32* source_load = nullptr;
  i32* source_comm = nullptr;
  u32* compute_factor = nullptr;
  u32* comm_factor = nullptr;
  u32* distance = nullptr;
};

}  // namespace spec
}  // namespace gimbal
