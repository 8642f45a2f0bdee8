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
  i32* expert = nullptr;    // [slots][stride]
  i32* replicas = nullptr;  // [experts]
  u8* copies = nullptr;     // [experts][stride]
  // What each slot costs its GPU, and the sums.
  u32* share = nullptr;      // [slots][stride], Q31
  i32* load = nullptr;       // [slots][stride]
  i32* comm = nullptr;       // [slots][stride]
  i32* linear = nullptr;     // [slots][stride]: the slot's part of the total communication, and its price
  i32* gpu_load = nullptr;   // [stride]
  i32* gpu_comm = nullptr;   // [stride]
  i32* gpu_linear = nullptr;  // [stride]
  i32* gpu_new = nullptr;     // [stride]: slots that hold a pair the incumbent lacks
  // One scan of the swaps around a focus GPU g: what the slot's expert would cost on g, what is left without it, ...
  i32* focus_load = nullptr;  // [slots][stride]
  i32* focus_comm = nullptr;  // [slots][stride]
  i32* rest_load = nullptr;   // [slots][stride]
  i32* rest_comm = nullptr;   // [slots][stride]
  i32* linear_delta = nullptr;  // [slots][stride]
  // ... what each of g's experts would cost on every GPU, ...
  i32* move_load = nullptr;    // [slots][stride]
  i32* move_comm = nullptr;    // [slots][stride]
  i32* move_linear = nullptr;  // [slots][stride]
  // ... and the busiest of the GPUs that the swap leaves alone.
  i32* other_load = nullptr;  // [stride]
  i32* other_comm = nullptr;  // [stride]
  i32* potential = nullptr;   // [stride]
  i32* barred = nullptr;      // [experts], 0 or kBarred
  i32* noise = nullptr;       // [kNoiseSize + stride], scaled by the temperature
  i32* home = nullptr;        // [experts]: the GPU of an expert's only replica; of no meaning where there are more
  // `nearest`: the replica choice of each source for the expert at hand, and the contributions of two experts.
  i32* host_gpu = nullptr;       // [gpus + 1]: the GPUs of the expert at hand, and at the end how many they are
  i32* host_copies = nullptr;    // [gpus]
  i32* source_share = nullptr;   // [sources]
  u32* source_distance = nullptr;  // [sources]
  i32* spread_load = nullptr;    // [2][stride]
  i32* spread_comm = nullptr;    // [2][stride]
  // The best placement so far, and with a migration budget the best for each number of migrations.
  i32* best_expert = nullptr;      // [slots][stride]
  i64* frontier_value = nullptr;   // [frontier]
  i32* frontier_expert = nullptr;  // [frontier][slots][stride]
  i32 frontier = 0;      // numbers of migrations kept: 0 .. frontier - 1; 0 without a budget
};

// Where arrays lie: place() hands out one after the other, each aligned to a whole vector; without memory it only counts.
struct ArrayLayout {
  char* memory = nullptr;  // 64-byte aligned
  u64 bytes = 0;
  template <class T>
  GIMBAL_SPEC void place(T** field, u64 count) {
    if (memory != nullptr) *field = reinterpret_cast<T*>(memory + bytes);
    bytes += (count * sizeof(T) + 63) / 64 * 64;
  }
};

struct WalkerBytes {
  u64 work;  // what every step reads and writes
  u64 kept;  // what a walk leaves behind: its best placement, and with a budget the best for each number of migrations
};

// Points a walker's arrays into its two pieces of memory, or with null for both only counts the bytes they need.
GIMBAL_SPEC WalkerBytes lay_out_walker(const LayerView& view, i32 frontier, char* work_memory, char* kept_memory,
                                       Walker* walker) {
  const u64 stride = static_cast<u64>(view.stride) / 16 * 16;  // as it is; said so that a compiler sees rows end on vectors
  const u64 cells = static_cast<u64>(view.slots) * stride;
  const u64 experts = static_cast<u64>(view.experts);
  const u64 sources = view.nearest ? static_cast<u64>(view.sources) : 0;
  ArrayLayout work{work_memory};
  work.place(&walker->expert, cells);
  work.place(&walker->replicas, experts);
  work.place(&walker->copies, experts * stride);
  work.place(&walker->share, cells);
  work.place(&walker->load, cells);
  work.place(&walker->comm, cells);
  work.place(&walker->linear, cells);
  work.place(&walker->gpu_load, stride);
  work.place(&walker->gpu_comm, stride);
  work.place(&walker->gpu_linear, stride);
  work.place(&walker->gpu_new, stride);
  work.place(&walker->focus_load, cells);
  work.place(&walker->focus_comm, cells);
  work.place(&walker->rest_load, cells);
  work.place(&walker->rest_comm, cells);
  work.place(&walker->linear_delta, cells);
  work.place(&walker->move_load, cells);
  work.place(&walker->move_comm, cells);
  work.place(&walker->move_linear, cells);
  work.place(&walker->other_load, stride);
  work.place(&walker->other_comm, stride);
  work.place(&walker->potential, stride);
  work.place(&walker->barred, experts);
  work.place(&walker->noise, static_cast<u64>(kNoiseSize) + stride);
  work.place(&walker->host_gpu, stride + 1);
  work.place(&walker->host_copies, stride);
  work.place(&walker->source_share, sources);
  work.place(&walker->source_distance, sources);
  work.place(&walker->spread_load, 2 * stride);
  work.place(&walker->spread_comm, 2 * stride);
  work.place(&walker->home, experts);
  ArrayLayout kept{kept_memory};
  kept.place(&walker->best_expert, cells);
  kept.place(&walker->frontier_value, static_cast<u64>(frontier));
  kept.place(&walker->frontier_expert, static_cast<u64>(frontier) * cells);
  walker->frontier = frontier;
  return {work.bytes, kept.bytes};
}

}  // namespace spec
}  // namespace gimbal
