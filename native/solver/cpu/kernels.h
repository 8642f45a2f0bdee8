// The CPU backend's inner loops, one table of functions per instruction set; the best that the machine has is taken.
#pragma once

#include <atomic>
#include <cstdint>

#include "../../spec/score_columns.h"
#include "../../spec/types.h"

namespace gimbal {

// Memory is the caller's: no kernel allocates, so no library code is compiled for an instruction set that may be missing.
// Each takes the Team's scratch, `scores` [team_scratch()].
struct CpuKernels {
  const char* name;
  // Fills fine->expert_tokens and fine->comm too, whose memory is the caller's. Scratch: wide [2][experts].
  void (*fill_tables)(const spec::FineWeights& weights, const spec::CostPattern& pattern, bool uniform,
                      const spec::SearchTables& tables, int64_t* expert_tokens, int64_t* comm_fine, int64_t* wide,
                      int32_t* scores, spec::FineLayer* fine, spec::SearchScale* scale);
  bool (*walk)(const spec::LayerView& view, const spec::Walker& walker, const spec::WalkPlan& plan, const int32_t* start,
               int64_t until, const std::atomic<bool>* cancel, int32_t* scores, spec::WalkProgress* progress);
  // Exact terms of a placement [gpus][slots]; `held` [experts][stride] or null. Scratch: ids [experts + 1 + gpus * slots],
  // sums [2][gpus].
  spec::FineTerms (*evaluate)(const spec::FineLayer& fine, const uint8_t* held, const int32_t* placement, int32_t* ids,
                              int64_t* sums, int32_t* scores);
  // spec::read_candidate. Scratch: replicas [experts]; scores [all_gpus * slots] if that is more.
  int32_t (*read_candidate)(const spec::FineLayer& fine, const spec::LiveGpus& which, const int32_t* candidate,
                            int32_t* live, int32_t* replicas, int32_t* scores);
  int64_t (*bound)(const spec::LayerView& view, const spec::FineLayer& fine, const spec::FineWeights& weights, int shift,
                   int64_t migration, int32_t iterations, const spec::BoundScratch& scratch, int32_t* scores);
  // spec::score_request of each: pressure_us [requests][engines], best [requests]. Scratch: scores [engines].
  void (*score)(const spec::EngineColumns& engines, const spec::RequestColumns& requests, int64_t* pressure_us, int32_t* best,
                int32_t* scores);
};

// The cells of the Team's scratch: a plane of swaps and its column minima, or the experts.
inline size_t team_scratch(int32_t experts, int32_t slots, int32_t stride) {
  const size_t cells = static_cast<size_t>(slots) * static_cast<size_t>(stride);
  return (cells > static_cast<size_t>(experts) ? cells : static_cast<size_t>(experts)) + static_cast<size_t>(stride);
}

const CpuKernels& kernels_base();
#if defined(__x86_64__) && defined(__GNUC__)
#define GIMBAL_X86_KERNELS 1
const CpuKernels& kernels_v3();
const CpuKernels& kernels_v4();
#endif

}  // namespace gimbal
