// One layer as the search sees it, and one walker's memory. Views only: a backend owns the storage and says where it lies.
#pragma once

#include "random.h"
#include "units.h"

namespace gimbal {
namespace spec {

// How the busiest GPU's communication enters the objective.
enum class CommTerm : u8 {
  kAbsent,  // its weight is 0
  kUnit,    // one unit of communication is one unit of the objective
  kScaled,  // its weight is below that of the total: multiply by max_scale
};

// Immutable, in search units. GPUs are the live ones, renumbered from 0; `stride` is their count padded to whole vectors.
struct LayerView {
  i32 experts = 0;
  i32 gpus = 0;
  i32 stride = 0;
  i32 slots = 0;  // per GPU
  i32 sources = 0;
  bool nearest = false;
  bool uniform_compute = true;  // every GPU computes equally fast: load is [experts] and load_t is the same array
  bool allow_duplicates = false;
  CommTerm comm_term = CommTerm::kAbsent;
  u32 max_scale = 0;    // Q31, of the busiest GPU's communication (kScaled only)
  u32 total_scale = 0;  // Q31, of each GPU's communication in the total
  i32 price = 0;        // of one new (expert, GPU) pair
  const i32* load = nullptr;    // [experts] or [experts][stride]: all of the expert's tokens computed on that GPU
  const i32* load_t = nullptr;  // [experts] or [gpus][experts]
  const i32* comm = nullptr;    // [experts][stride]: all of the expert's tokens sent to that GPU
  const i32* comm_t = nullptr;  // [gpus][experts]
  const u8* held = nullptr;     // [experts][stride], copies in the incumbent; null where there is none
  // `nearest` only: the same by source, at the dearest GPU, and the factor of each GPU.
  const i32* source_load = nullptr;   // [sources][experts]
  const i32* source_comm = nullptr;   // [sources][experts]
  const u32* compute_factor = nullptr;  // [stride], Q31
  const u32* comm_factor = nullptr;     // [sources][stride], Q31
  const u32* distance = nullptr;        // [sources][stride], the quantised communication cost
};

// A walker's memory. Arrays over slots are [slots][stride]: one row per slot number, one lane per GPU.
struct Walker {
  // The placement.
  i32* expert;    // [slots][stride]
  i32* replicas;  // [experts]
  u8* copies;     // [experts][stride]
  // What each slot costs its GPU, and the sums.
  u32* share;      // [slots][stride], Q31
  i32* load;       // [slots][stride]
  i32* comm;       // [slots][stride]
  i32* linear;     // [slots][stride]: the slot's part of the total communication, and its price
  i32* gpu_load;   // [stride]
  i32* gpu_comm;   // [stride]
  i32* gpu_linear;  // [stride]
  i32* gpu_new;     // [stride]: slots that hold a pair the incumbent lacks
  // One scan of the swaps around a focus GPU g: what the slot's expert would cost on g, what is left without it, ...
  i32* focus_load;  // [slots][stride]
  i32* focus_comm;  // [slots][stride]
  i32* rest_load;   // [slots][stride]
  i32* rest_comm;   // [slots][stride]
  i32* linear_delta;  // [slots][stride]
  // ... what each of g's experts would cost on every GPU, ...
  i32* move_load;    // [slots][stride]
  i32* move_comm;    // [slots][stride]
  i32* move_linear;  // [slots][stride]
  // ... and the busiest of the GPUs that the swap leaves alone.
  i32* other_load;  // [stride]
  i32* other_comm;  // [stride]
  i32* potential;   // [stride]
  i32* barred;      // [experts], 0 or kBarred
  i32* noise;       // [kNoiseSize + stride], scaled by the temperature
  i32* scores;      // [max(slots * stride, experts) + stride], scratch of the CPU's argmin
  i32* home;        // [experts]: the GPU of the replica placed last; the only one where there is one replica
  // `nearest`: the replica choice of each source for the expert at hand, and the contributions of two experts.
  i32* host_gpu;       // [gpus + 1]: the GPUs of the expert at hand, and at the end how many they are
  i32* host_copies;    // [gpus]
  i32* source_share;   // [sources]
  u32* source_distance;  // [sources]
  i32* spread_load;    // [2][stride]
  i32* spread_comm;    // [2][stride]
  // The best placement so far, and with a migration budget the best for each number of migrations.
  i32* best_expert;      // [slots][stride]
  i64* frontier_value;   // [frontier]
  i32* frontier_expert;  // [frontier][slots][stride]
  i32 frontier = 0;      // numbers of migrations kept: 0 .. frontier - 1; 0 without a budget
};

// Where a walker's arrays lie: place() hands out one after the other, each aligned to a whole vector.
struct WalkerLayout {
  u64 bytes = 0;
  GIMBAL_SPEC u64 place(u64 count, u64 size) {
    const u64 at = bytes;
    bytes += (count * size + 63) / 64 * 64;
    return at;
  }
};

// Points a walker's arrays into `memory` (64-byte aligned), or with null only counts the bytes they need.
GIMBAL_SPEC_LONG u64 lay_out_walker(const LayerView& view, i32 frontier, char* memory, Walker* walker) {
  WalkerLayout layout;
  const u64 stride = static_cast<u64>(view.stride);
  const u64 cells = static_cast<u64>(view.slots) * stride;
  const u64 experts = static_cast<u64>(view.experts);
  const auto i32s = [&](i32** field, u64 count) {
    const u64 at = layout.place(count, sizeof(i32));
    if (memory != nullptr) *field = reinterpret_cast<i32*>(memory + at);
  };
  const auto u32s = [&](u32** field, u64 count) {
    const u64 at = layout.place(count, sizeof(u32));
    if (memory != nullptr) *field = reinterpret_cast<u32*>(memory + at);
  };
  i32s(&walker->expert, cells);
  i32s(&walker->replicas, experts);
  const u64 copies_at = layout.place(experts * stride, 1);
  if (memory != nullptr) walker->copies = reinterpret_cast<u8*>(memory + copies_at);
  u32s(&walker->share, cells);
  i32s(&walker->load, cells);
  i32s(&walker->comm, cells);
  i32s(&walker->linear, cells);
  i32s(&walker->gpu_load, stride);
  i32s(&walker->gpu_comm, stride);
  i32s(&walker->gpu_linear, stride);
  i32s(&walker->gpu_new, stride);
  i32s(&walker->focus_load, cells);
  i32s(&walker->focus_comm, cells);
  i32s(&walker->rest_load, cells);
  i32s(&walker->rest_comm, cells);
  i32s(&walker->linear_delta, cells);
  i32s(&walker->move_load, cells);
  i32s(&walker->move_comm, cells);
  i32s(&walker->move_linear, cells);
  i32s(&walker->other_load, stride);
  i32s(&walker->other_comm, stride);
  i32s(&walker->potential, stride);
  i32s(&walker->barred, experts);
  i32s(&walker->noise, static_cast<u64>(kNoiseSize) + stride);
  i32s(&walker->scores, (cells > experts ? cells : experts) + stride);
  i32s(&walker->host_gpu, stride + 1);
  i32s(&walker->host_copies, stride);
  i32s(&walker->source_share, view.nearest ? static_cast<u64>(view.sources) : 0);
  u32s(&walker->source_distance, view.nearest ? static_cast<u64>(view.sources) : 0);
  i32s(&walker->spread_load, 2 * stride);
  i32s(&walker->spread_comm, 2 * stride);
  i32s(&walker->home, experts);
  i32s(&walker->best_expert, cells);
  const u64 values_at = layout.place(static_cast<u64>(frontier), sizeof(i64));
  if (memory != nullptr) walker->frontier_value = reinterpret_cast<i64*>(memory + values_at);
  i32s(&walker->frontier_expert, static_cast<u64>(frontier) * cells);
  walker->frontier = frontier;
  return layout.bytes;
}

}  // namespace spec
}  // namespace gimbal
