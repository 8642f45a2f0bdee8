// The CPU backend's inner loops, one table of functions per instruction set; the best that the machine has is taken.
#pragma once

#include <atomic>
#include <cstdint>

#include "../backend.h"

namespace gimbal {

// Memory is the caller's: no kernel allocates, so no library code is compiled for an instruction set that may be missing.
struct CpuKernels {
  const char* name;
  // Scratch: [2][experts].
  void (*fill_tables)(const spec::FineWeights& weights, const spec::CostPattern& pattern, bool uniform,
                      const spec::SearchTables& tables, int64_t* expert_tokens, int64_t* comm_fine, int64_t* scratch,
                      spec::FineLayer* fine, spec::SearchScale* scale);
  // task->state is laid out; task->best has its size.
  bool (*walk)(WalkTask* task, bool fresh, int64_t until, const std::atomic<bool>* cancel);
  // Scratch: ids [experts + 1 + gpus * slots], sums [2][gpus].
  void (*evaluate)(const spec::FineLayer& fine, const int32_t* placements, int64_t count, int64_t stride, int32_t* ids,
                   int64_t* sums, spec::FineTerms* terms);
  // Scratch: wide [9 * stride + 2 * experts], narrow [stride + experts].
  int64_t (*bound)(const spec::LayerView& view, const spec::FineLayer& fine, const spec::FineWeights& weights, int shift,
                   int64_t migration, int32_t iterations, int64_t* wide, int32_t* narrow);
};

const CpuKernels& kernels_base();
#if defined(__x86_64__) && defined(__GNUC__)
#define GIMBAL_X86_KERNELS 1
const CpuKernels& kernels_v3();
const CpuKernels& kernels_v4();
#endif

}  // namespace gimbal
