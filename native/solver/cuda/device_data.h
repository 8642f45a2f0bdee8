// What lies in device memory, shape by shape: plain data that the host fills and kernels read, or the other way round.
#pragma once

#include "../../spec/types.h"

namespace gimbal {
namespace cuda {

using namespace spec;

// One layer: its inputs, its tables, and the search's view of them. All pointers are the device's.
struct DeviceLayer {
  FineLayer fine;
  FineWeights weights;
  CostPattern pattern;
  SearchTables tables;
  SearchScale scale;
  LayerView view;
  i64* expert_tokens = nullptr;  // [experts]
  i64* comm = nullptr;           // [gpus][experts]
  i64* wide = nullptr;           // [2][experts], scratch
  const u8* held = nullptr;      // [experts][stride]; null without an incumbent
  const i32* start = nullptr;    // [gpus][slots], the incumbent's
  FineTerms start_terms;
  bool uniform = true;
  bool allow_duplicates = false;
};

// One walk of a layer.
struct DeviceWalk {
  WalkPlan plan;
  i32 layer = 0;
  i32 frontier = 0;
  const i32* start = nullptr;  // [gpus][slots]; null: construct
  i32* expert = nullptr;       // [slots][stride], where a paused walk stands
  char* kept = nullptr;        // what lay_out_walker calls kept
};

// What is known of a walk when it is compiled costs no registers, and registers decide how many walks a multiprocessor holds.
enum class WalkKind {
  kFirst,    // `even`; no incumbent, GPUs alike, no duplicates, both parts of the objective in one unit: most first plans
  kAny,      // `even`
  kNearest,
};

// A placement to be priced: `expert` is [slots][stride], or [gpus][slots] where it is packed.
struct DevicePlacement {
  const i32* expert = nullptr;
  const i64* value = nullptr;  // a frontier's entry; INT64_MAX there means that it holds no placement. Null: it holds one
  i32 layer = 0;
  i32 packed = 0;
};

// A placement to be copied: to [gpus][slots], packed.
struct DeviceCopy {
  DevicePlacement from;
  i32* to = nullptr;
};

// The best placement of a layer: which of its `count` placements from `first` on, -1 the incumbent's start.
struct DeviceChoice {
  i32 first = 0;
  i32 count = 0;
  i32 best = -1;
  FineTerms terms;
};

}  // namespace cuda
}  // namespace gimbal
