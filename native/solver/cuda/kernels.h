// The kernels: the spec over a block of threads. Each takes what it works on by value, as pointers into device memory; blocks
// share nothing but what an earlier kernel left.
#pragma once

#include "../../spec/bound.h"
#include "../../spec/cost.h"
#include "../../spec/score.h"
#include "../../spec/tables.h"
#include "../../spec/walk.h"
#include "block_team.h"
#include "device_data.h"

namespace gimbal {
namespace cuda {

// Threads per block that kernels are compiled for at the most. The code is right for any number of whole warps up to
// kMostThreads; registers are not enough for as many.
constexpr i32 kTableThreads = 256;
constexpr i32 kWalkThreads = 128;
constexpr i32 kPriceThreads = 128;
constexpr i32 kEvaluateThreads = 896;

static __device__ const NoiseTable kNoise = make_noise_table();

// ---- tables, in the order in which they are filled. Grids: [layers], or [layers][rows].

// expert_tokens and the base sums.
static __global__ void sum_sources_kernel(const DeviceLayer* layers) {
  GIMBAL_DYNAMIC_SHARED(shared);
  const DeviceLayer& layer = layers[blockIdx.x];
  BlockTeam team(kNoise.quantile, shared, layer.view.stride);
  sum_sources(team, layer.fine, layer.pattern, layer.expert_tokens, layer.wide);
}

// The fine table, a GPU's row per block: blockIdx.x = GPU, blockIdx.y = layer.
static __global__ void comm_rows_kernel(const DeviceLayer* layers) {
  GIMBAL_DYNAMIC_SHARED(shared);
  const DeviceLayer& layer = layers[blockIdx.y];
  BlockTeam team(kNoise.quantile, shared, layer.view.stride);
  const i32 g = static_cast<i32>(blockIdx.x);
  fill_comm_row(team, layer.fine, layer.pattern, layer.wide, g, layer.comm + static_cast<i64>(g) * layer.fine.experts);
}

// The search's scale, and the view of tables that the next kernels fill.
static __global__ void scale_kernel(DeviceLayer* layers) {
  GIMBAL_DYNAMIC_SHARED(shared);
  DeviceLayer& layer = layers[blockIdx.x];
  BlockTeam team(kNoise.quantile, shared, layer.view.stride);
  const FineLayer fine = layer.fine;
  const FineWeights weights = layer.weights;
  const SearchScale scale = search_scale(weights, worst_case(team, fine, weights, layer.wide, layer.wide + fine.experts));
  team.single([&]() {
    layer.scale = scale;
    layer.view = view_of(fine, layer.tables, scale, layer.uniform, layer.allow_duplicates);
  });
  if (fine.nearest) fill_nearest_factors(team, fine, layer.tables);
}

// `even`: the transposed search tables, a GPU per block; `nearest`: the sources' rows, a source per block. y: layer.
static __global__ void table_rows_kernel(const DeviceLayer* layers) {
  GIMBAL_DYNAMIC_SHARED(shared);
  const DeviceLayer& layer = layers[blockIdx.y];
  BlockTeam team(kNoise.quantile, shared, layer.view.stride);
  const i32 row = static_cast<i32>(blockIdx.x);
  if (layer.fine.nearest) {
    fill_nearest_source(team, layer.fine, layer.weights, layer.scale, layer.tables, row);
  } else {
    fill_even_row(team, layer.fine, layer.weights, layer.scale, layer.uniform, layer.tables, row);
  }
}

// The search tables by expert, some experts per block.
constexpr i32 kExpertsPerBlock = 8;
static __global__ void table_experts_kernel(const DeviceLayer* layers) {
  GIMBAL_DYNAMIC_SHARED(shared);
  const DeviceLayer& layer = layers[blockIdx.y];
  BlockTeam team(kNoise.quantile, shared, layer.view.stride);
  const i32 begin = static_cast<i32>(blockIdx.x) * kExpertsPerBlock;
  const i32 end = min_of(begin + kExpertsPerBlock, layer.fine.experts);
  if (layer.fine.nearest) {
    fill_nearest_experts(team, layer.fine, layer.tables, begin, end);
  } else {
    fill_even_experts(team, layer.fine, layer.weights, layer.scale, layer.uniform, layer.tables, begin, end);
  }
}

// ---- walks: a walk per block

struct WalkArguments {
  const DeviceLayer* layers;
  const DeviceWalk* walks;
  WalkProgress* progress;  // [walks]
  char* work;              // [blocks][work_bytes] in global memory; null where the work lies in shared memory
  u64 work_bytes;
  i64 until;
};

// How many walks of kWalkThreads threads that is to be, as far as registers go: with more, some would spill. Before sm_80
// shared memory holds one or two.
constexpr i32 walk_blocks(WalkKind kind, bool shared) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return 2;
#else
  return !shared || kind == WalkKind::kNearest ? 2 : kind == WalkKind::kFirst ? 5 : 3;
#endif
}

// Threads of a walk: as many as let the walks of a multiprocessor get on fastest. A scan of [slots][stride] cells takes so
// many turns, and shared memory and registers hold so many walks; of equals, the fewest threads.
inline i32 walk_threads(WalkKind kind, i32 slots, i32 stride, i32 walks_by_memory) {
  const i32 warps = walk_blocks(kind, true) * kWalkThreads / kWarp;
  i32 best = kWarp;
  i64 best_turns = INT64_MAX, best_walks = 1;
  for (i32 threads = 2 * kWarp; threads <= kWalkThreads; threads += kWarp) {
    const i32 rows = max_of(threads / stride, 1);
    const i64 turns = i64{(slots + rows - 1) / rows} * ((stride + threads - 1) / threads);
    const i64 walks = max_of(min_of(walks_by_memory, warps / (threads / kWarp)), 1);
    if (best_turns != INT64_MAX && turns * best_walks >= best_turns * walks) continue;
    best_turns = turns;
    best_walks = walks;
    best = threads;
  }
  return best;
}

template <WalkKind kKind, bool kShared>
GIMBAL_DEVICE void walk_block(const WalkArguments& a, unsigned char* shared) {
  // Read where it is needed: what is kept in a register for the whole walk is missing in its inner loop.
  const DeviceWalk* const walk = a.walks + blockIdx.x;
  LayerView view = a.layers[walk->layer].view;
  view.nearest = kKind == WalkKind::kNearest;
  if (kKind == WalkKind::kFirst) {
    view.uniform_compute = true;
    view.allow_duplicates = false;
    view.comm_term = CommTerm::kUnit;
    view.held = nullptr;
  }
  BlockTeam team(kNoise.quantile, shared, view.stride);
  char* const work = kShared ? reinterpret_cast<char*>(shared + BlockTeam::kSharedBytes) : a.work + blockIdx.x * a.work_bytes;
  Walker walker;
  lay_out_walker(view, kKind == WalkKind::kFirst ? 0 : walk->frontier, work, walk->kept, &walker);
  const i32 cells = view.slots * view.stride;
  WalkProgress progress = a.progress[blockIdx.x];
  if (progress.steps_done >= 0) {
    team.copy(cells, static_cast<const i32*>(walk->expert), walker.expert);
  }
  walk_on(team, view, walker, walk->plan, walk->start, a.until, &progress, []() { return false; });
  team.copy(cells, static_cast<const i32*>(walker.expert), walk->expert);
  WalkProgress* const out = a.progress + blockIdx.x;
  team.single([=]() { *out = progress; });
}

template <WalkKind kKind, bool kShared>
static __global__ void __launch_bounds__(kWalkThreads, walk_blocks(kKind, kShared)) walk_kernel(WalkArguments arguments) {
  GIMBAL_DYNAMIC_SHARED(shared);
  walk_block<kKind, kShared>(arguments, shared);
}

// ---- placements priced

// What pricing needs of memory: the placement, its experts' replicas (`nearest`: their hosts), and the sums by GPU.
struct PriceScratch {
  i32* placement = nullptr;  // [gpus][slots]
  i32* ids = nullptr;        // [experts], or [experts + 1 + gpus * slots]
  i64* load = nullptr;       // [gpus]
  i64* comm = nullptr;       // [gpus]
};

GIMBAL_SPEC u64 lay_out_price(const FineLayer& fine, char* memory, PriceScratch* scratch) {
  const u64 gpus = static_cast<u64>(fine.gpus);
  const u64 cells = gpus * static_cast<u64>(fine.slots);
  ArrayLayout layout{memory};
  layout.place(&scratch->load, gpus);
  layout.place(&scratch->comm, gpus);
  layout.place(&scratch->placement, cells);
  layout.place(&scratch->ids, static_cast<u64>(fine.experts) + (fine.nearest ? 1 + cells : 0));
  return layout.bytes;
}

// `counted`: for `even`, the experts' replicas stand in scratch.ids already.
template <class Team>
GIMBAL_DEVICE FineTerms price(Team& team, const FineLayer& fine, const u8* held, const i32* placement,
                              const PriceScratch& scratch, bool counted = false) {
  if (!fine.nearest && !counted) count_replicas(team, fine.experts, fine.gpus * fine.slots, placement, scratch.ids);
  FineTerms terms =
      fine.nearest ? fine_terms_nearest(team, fine, placement, scratch.ids, scratch.ids + fine.experts + 1, scratch.load,
                                        scratch.comm)
                   : fine_terms_even(team, fine, placement, scratch.ids, scratch.load, scratch.comm);
  if (held != nullptr) terms.migrations = count_new_pairs(team, fine.gpus, fine.slots, held, placement);
  return terms;
}

// Copies a placement to [gpus][slots].
template <class Team>
GIMBAL_DEVICE void unpack(Team& team, const FineLayer& fine, const DevicePlacement& from, i32* to) {
  const i32 slots = fine.slots;
  const i32 stride = padded_gpus(fine.gpus);
  const i32* const expert = from.expert;
  if (from.packed != 0) {
    team.copy(fine.gpus * slots, expert, to);
    return;
  }
  team.for_each2(fine.gpus, slots, [=](i32 g, i32 k) { to[g * slots + k] = expert[k * stride + g]; });
}

struct PriceArguments {
  const DeviceLayer* layers;
  const DevicePlacement* placements;
  FineTerms* terms;  // [placements]; load_max -1 where there was none
  char* scratch;     // [blocks][scratch_bytes] in global memory; null where it lies in shared memory
  u64 scratch_bytes;
};

// A placement per block.
template <bool kShared>
static __global__ void __launch_bounds__(kPriceThreads, 4) price_kernel(PriceArguments a) {
  GIMBAL_DYNAMIC_SHARED(shared);
  const DevicePlacement& from = a.placements[blockIdx.x];
  const DeviceLayer& layer = a.layers[from.layer];
  BlockTeam team(kNoise.quantile, shared, layer.view.stride);
  FineTerms terms;
  terms.load_max = -1;
  if (from.value == nullptr || *from.value != INT64_MAX) {
    PriceScratch scratch;
    char* const own = kShared ? reinterpret_cast<char*>(shared + BlockTeam::kSharedBytes) : a.scratch + blockIdx.x * a.scratch_bytes;
    lay_out_price(layer.fine, own, &scratch);
    unpack(team, layer.fine, from, scratch.placement);
    terms = price(team, layer.fine, layer.view.held, scratch.placement, scratch);
  }
  FineTerms* const out = a.terms + blockIdx.x;
  team.single([=]() { *out = terms; });
}

// An incumbent comes to a layer: its pairs, their price, and what its start costs. A layer per block.
static __global__ void hold_kernel(DeviceLayer* layers, const u8* held, const i32* start, char* scratch_memory,
                                   u64 scratch_bytes) {
  GIMBAL_DYNAMIC_SHARED(shared);
  DeviceLayer& layer = layers[blockIdx.x];
  const FineLayer fine = layer.fine;
  BlockTeam team(kNoise.quantile, shared, layer.view.stride);
  const u8* const own_held = held + blockIdx.x * static_cast<i64>(fine.experts) * layer.view.stride;
  const i32* const own_start = start + blockIdx.x * static_cast<i64>(fine.gpus) * fine.slots;
  PriceScratch scratch;
  lay_out_price(fine, scratch_memory + blockIdx.x * scratch_bytes, &scratch);
  const FineTerms terms = price(team, fine, own_held, own_start, scratch);
  team.single([&]() {
    layer.held = layer.view.held = own_held;
    layer.view.price = to_search_price(layer.weights.migration, layer.scale.shift);
    layer.start = own_start;
    layer.start_terms = terms;
  });
}

// Of each layer the best: by objective, then migrations, then the order of finding, the incumbent's start first. A layer
// per block.
static __global__ void choose_kernel(const DeviceLayer* layers, const DevicePlacement* placements, const FineTerms* terms,
                                     DeviceChoice* choices, i32* chosen) {
  GIMBAL_DYNAMIC_SHARED(shared);
  const DeviceLayer& layer = layers[blockIdx.x];
  BlockTeam team(kNoise.quantile, shared, layer.view.stride);
  DeviceChoice* const choice = choices + blockIdx.x;
  const bool has_start = layer.start != nullptr;
  const FineTerms start_terms = layer.start_terms;
  const FineTerms* const own = terms + choice->first - 1;  // candidate 0 is the incumbent's start
  const FineWeights weights = layer.weights;
  const i32 count = choice->count + 1;
  const auto objective = [=](i32 n) {
    const bool found = n > 0 ? own[n].load_max >= 0 : has_start;
    return found ? fine_objective(weights, n > 0 ? own[n] : start_terms) : INT64_MAX;
  };
  const auto migrations = [=](i32 n) { return n > 0 ? own[n].migrations : start_terms.migrations; };
  const i64 least = -team.max(count, [=](i32 n) { return -objective(n); });
  const i64 fewest =
      -team.max(count, [=](i32 n) { return objective(n) == least ? -migrations(n) : least_value<i64>() + 1; });
  const i32 best = team.argmin(count, [=](i32 n) {
    return objective(n) == least && migrations(n) == fewest ? 0 : 1;
  }).index;
  const DevicePlacement from = best > 0 ? placements[choice->first + best - 1]
                                        : DevicePlacement{layer.start, nullptr, static_cast<i32>(blockIdx.x), 1};
  unpack(team, layer.fine, from, chosen + blockIdx.x * static_cast<i64>(layer.fine.gpus) * layer.fine.slots);
  team.single([=]() {
    choice->best = best - 1;
    choice->terms = best > 0 ? own[best] : start_terms;
  });
}

// A placement per block.
static __global__ void copy_kernel(const DeviceLayer* layers, const DeviceCopy* copies) {
  GIMBAL_DYNAMIC_SHARED(shared);
  const DeviceCopy& copy = copies[blockIdx.x];
  const DeviceLayer& layer = layers[copy.from.layer];
  BlockTeam team(kNoise.quantile, shared, layer.view.stride);
  unpack(team, layer.fine, copy.from, copy.to);
}

// ---- bounds: a layer per block in x, a price of migrations in y

struct BoundArguments {
  const DeviceLayer* layers;
  const i64* prices;  // [prices]
  i64* bounds;        // [prices][layers]
  char* scratch;      // [prices][layers][scratch_bytes]
  u64 scratch_bytes;
  i32 iterations;
};

static __global__ void bound_kernel(BoundArguments a) {
  GIMBAL_DYNAMIC_SHARED(shared);
  const DeviceLayer& layer = a.layers[blockIdx.x];
  const FineLayer fine = layer.fine;
  const LayerView view = layer.view;
  BlockTeam team(kNoise.quantile, shared, view.stride);
  const u64 at = static_cast<u64>(blockIdx.y) * gridDim.x + blockIdx.x;
  BoundScratch scratch;
  lay_out_bound(view.stride, view.experts, a.scratch + at * a.scratch_bytes, &scratch);
  const i64 bound = bound_layer(team, view, fine, layer.weights, layer.scale.shift, a.prices[blockIdx.y], a.iterations, scratch);
  i64* const out = a.bounds + at;
  team.single([=]() { *out = bound; });
}

// ---- candidates: a warp per candidate, the layer's table in shared memory where it fits

struct EvaluateArguments {
  const DeviceLayer* layers;
  const i32* candidates;  // [candidates][layers][all_gpus * slots]
  LiveGpus live;
  FineTerms* terms;  // [candidates][layers]
  i32* bad_slot;     // the same
  char* scratch;     // [warps of the grid][scratch_bytes] in global memory; null where it lies in shared memory
  u64 scratch_bytes;
  i32 candidate_count;
  i32 layer_count;
};

template <bool kTableShared, bool kScratchShared>
static __global__ void __launch_bounds__(kEvaluateThreads) evaluate_kernel(EvaluateArguments a) {
  GIMBAL_DYNAMIC_SHARED(shared);
  const DeviceLayer& layer = a.layers[blockIdx.y];
  FineLayer fine = layer.fine;
  const u8* const held = layer.view.held;
  const i32 warps = static_cast<i32>(blockDim.x) / kWarp;
  const i32 warp = static_cast<i32>(threadIdx.x) / kWarp;
  char* memory = reinterpret_cast<char*>(shared);
  if (kTableShared) {
    BlockTeam block(kNoise.quantile, shared, padded_gpus(fine.gpus));
    i64* comm = nullptr;
    i64* expert_tokens = nullptr;
    ArrayLayout layout{memory};
    layout.place(&comm, static_cast<u64>(fine.gpus) * static_cast<u64>(fine.experts));
    layout.place(&expert_tokens, static_cast<u64>(fine.experts));
    memory += layout.bytes;
    block.copy(fine.gpus * fine.experts, fine.comm, comm);
    block.copy(fine.experts, fine.expert_tokens, expert_tokens);
    fine.comm = comm;
    fine.expert_tokens = expert_tokens;
  }
  WarpTeam team(kNoise.quantile, nullptr, padded_gpus(fine.gpus));
  const u64 grid_warp = (static_cast<u64>(blockIdx.y) * gridDim.x + blockIdx.x) * static_cast<u64>(warps) + static_cast<u64>(warp);
  char* const own = kScratchShared ? memory + static_cast<u64>(warp) * a.scratch_bytes : a.scratch + grid_warp * a.scratch_bytes;
  PriceScratch scratch;
  lay_out_price(fine, own, &scratch);
  const i64 width = static_cast<i64>(a.live.all_gpus) * fine.slots;
  GIMBAL_ROLLED
  for (i32 c = static_cast<i32>(blockIdx.x) * warps + warp; c < a.candidate_count; c += static_cast<i32>(gridDim.x) * warps) {
    const i64 at = static_cast<i64>(c) * a.layer_count + blockIdx.y;
    FineTerms terms;
    const i32 bad = read_candidate(team, fine.experts, fine.slots, a.live, a.candidates + at * width, scratch.placement, scratch.ids);
    if (bad < 0) terms = price(team, fine, held, scratch.placement, scratch, true);
    FineTerms* const out = a.terms + at;
    i32* const out_bad = a.bad_slot + at;
    team.single([=]() {
      *out = terms;
      *out_bad = bad;
    });
  }
}

// ---- scores: a warp per request

struct ScoreArguments {
  EngineColumns engines;
  RequestColumns requests;
  i64* pressure_us;  // [requests][engines]
  i32* best;         // [requests]
};

static __global__ void __launch_bounds__(kTableThreads) score_kernel(ScoreArguments a) {
  const i32 warps = static_cast<i32>(blockDim.x) / kWarp;
  const i32 request = static_cast<i32>(blockIdx.x) * warps + static_cast<i32>(threadIdx.x) / kWarp;
  if (request >= a.requests.count) return;  // the whole warp
  WarpTeam team(kNoise.quantile, nullptr, kWarp);
  const EngineColumns engines = a.engines;
  const RequestColumns requests = a.requests;
  const i32 best = score_request(team, engines, requests, request, a.pressure_us + static_cast<i64>(request) * engines.count);
  i32* const out = a.best + request;
  team.single([=]() { *out = best; });
}

}  // namespace cuda
}  // namespace gimbal
