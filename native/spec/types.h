// The plain data that goes in and out of the spec's larger functions. Nothing here runs over a Team: code outside of the
// kernels includes this, and the kernels alone include the rest, so that it is compiled for their instruction set.
#pragma once

#include "layer.h"
#include "potential.h"
#include "units.h"

namespace gimbal {
namespace spec {

// ---- the objective (cost.h)

// One layer's exact inputs; GPUs are the live ones, renumbered from 0.
struct FineLayer {
  i32 experts = 0;
  i32 gpus = 0;
  i32 slots = 0;  // per GPU
  i32 sources = 0;
  bool nearest = false;
  const u32* tokens = nullptr;        // [sources][experts]
  const u32* compute_cost = nullptr;  // [gpus]
  const u32* comm_cost = nullptr;     // [sources][gpus]
  const i64* expert_tokens = nullptr;  // [experts]: tokens summed over the sources
  const i64* comm = nullptr;           // [gpus][experts]: sum over sources of tokens * comm_cost
};

// The weights of J relative to the greatest of them, Q31; the migration price is in units of J already.
struct FineWeights {
  u32 load = 0;
  u32 comm_max = 0;
  u32 comm_total = 0;  // of the sum over GPUs: the caller's weight divided by the number of GPUs
  i64 migration = 0;   // per new (expert, GPU) pair
};

struct FineTerms {
  i64 load_max = 0;
  i64 comm_max = 0;
  i64 comm_total = 0;
  i64 migrations = 0;
};

// Which of a caller's GPUs are live, and how they are numbered in a FineLayer.
struct LiveGpus {
  i32 all_gpus = 0;
  const i32* live_index = nullptr;  // [all_gpus], -1 for a dead one; null where all are live
};

// ---- tables (tables.h)

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

// ---- walks (walk.h)

// What sets one walk apart from the others of its layer.
struct WalkPlan {
  i32 walker = 0;
  u64 key = 0;
  Temper temper;
  i64 total_steps = 0;
  // With a budget: the extra price of a new pair falls from `dearest` to `cheapest` over the walk.
  i32 dearest = 0;
  i32 cheapest = 0;
};

// What a paused walk needs beside its placement and what it keeps.
struct WalkProgress {
  Potential load_potential;
  Potential comm_potential;
  i64 best_value = 0;  // search units
  i64 steps_done = -1;  // -1: not started
};

// ---- the certificate (bound.h)

// Prices per GPU: Q31 for load and communication, search units for a slot.
struct DualPrices {
  i64* load = nullptr;   // [stride]
  i64* comm = nullptr;   // [stride]
  i64* slot = nullptr;   // [stride]
};

// What the relaxation at hand asks of each GPU, and what it costs.
struct DualUse {
  i64* load = nullptr;   // [stride]
  i64* comm = nullptr;   // [stride]
  i64* slots = nullptr;  // [stride]
  i64* value = nullptr;  // [1]
};

struct BoundScratch {
  DualPrices prices;
  DualPrices best;
  DualUse use;
  i64* minimum = nullptr;   // [experts]
  i64* load = nullptr;      // [experts]
  i64* share = nullptr;     // [experts]
  i32* replicas = nullptr;  // [experts]
};

// Points the scratch into `memory` (64-byte aligned), or with null only counts the bytes.
GIMBAL_SPEC u64 lay_out_bound(i32 stride, i32 experts, char* memory, BoundScratch* scratch) {
  ArrayLayout layout{memory};
  const u64 gpus = static_cast<u64>(stride);
  layout.place(&scratch->prices.load, gpus);
  layout.place(&scratch->prices.comm, gpus);
  layout.place(&scratch->prices.slot, gpus);
  layout.place(&scratch->best.load, gpus);
  layout.place(&scratch->best.comm, gpus);
  layout.place(&scratch->best.slot, gpus);
  layout.place(&scratch->use.load, gpus);
  layout.place(&scratch->use.comm, gpus);
  layout.place(&scratch->use.slots, gpus);
  layout.place(&scratch->use.value, 1);
  layout.place(&scratch->minimum, static_cast<u64>(experts));
  layout.place(&scratch->load, static_cast<u64>(experts));
  layout.place(&scratch->share, static_cast<u64>(experts));
  layout.place(&scratch->replicas, static_cast<u64>(experts));
  return layout.bytes;
}

}  // namespace spec
}  // namespace gimbal
