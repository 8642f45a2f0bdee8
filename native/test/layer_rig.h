// One layer and its walks, driven through a chosen set of CPU kernels without the solver around them. Every array is an
// allocation of its own, so that a sanitizer sees any step past its end, and is filled with a pattern first, so that a read
// of what nobody wrote shows as a difference.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../model/incumbent.h"
#include "../model/problem.h"
#include "../model/quantise.h"
#include "../solver/backend.h"
#include "../solver/cpu/kernels.h"

namespace gimbal {
namespace test {

// The kernels of every instruction set this machine can run, and those over the shuffled Team.
struct KernelSet {
  std::string name;
  const CpuKernels* kernels;
};
const std::vector<KernelSet>& kernel_sets();

// The communication costs, split by row into a base and exceptions to it; `base_of` chooses a row's base.
using ChooseBase = std::function<uint32_t(const uint32_t* row, int32_t gpus)>;
CommPattern make_pattern(const Quantised& q, const ChooseBase& base_of);
uint32_t most_frequent(const uint32_t* row, int32_t gpus);

class LayerRig {
 public:
  LayerRig(const CpuKernels& kernels, const ProblemInput& in, const Quantised& q, int32_t layer, int32_t poison = 0x2A2A2A2A);
  LayerRig(const LayerRig&) = delete;

  const CpuKernels& kernels() const { return kernels_; }
  const LayerTables& tables() const { return tables_; }
  const spec::LayerView& view() const { return tables_.view; }
  const Incumbent& incumbent() const { return incumbent_; }
  bool has_incumbent() const { return tables_.view.held != nullptr; }

  // Exact terms of a placement [gpus][slots], without migrations.
  spec::FineTerms evaluate(const std::vector<int32_t>& placement) const;
  int64_t bound(const spec::FineWeights& weights, int64_t migration, int32_t iterations) const;

  // All search tables one after the other, for comparisons.
  std::vector<int32_t> search_tables() const;

 private:
  int32_t* take(size_t cells);

  const CpuKernels& kernels_;
  const int32_t poison_;
  std::vector<std::vector<int32_t>> arrays_;
  LayerTables tables_;
  Incumbent incumbent_;
};

struct WalkOptions {
  int32_t walker = 0;
  spec::Temper temper;
  uint64_t key = 0;
  int64_t total_steps = 64;
  int32_t frontier = 0;
  int32_t dearest = 0;
  int32_t cheapest = 0;
  const int32_t* start = nullptr;  // [gpus][slots]
  int32_t poison = 0x2A2A2A2A;
};

class WalkRig {
 public:
  WalkRig(const LayerRig& layer, const WalkOptions& options);
  WalkRig(const WalkRig&) = delete;

  // Walks on to step `until`. Returns false where cancelled.
  bool walk(int64_t until, const std::atomic<bool>* cancel = nullptr);

  const WalkTask& task() const { return task_; }
  const spec::Walker& state() const { return task_.state; }
  const std::vector<int32_t>& best() const { return task_.best; }

  // The placement at hand and the incremental sums, one after the other, for comparisons.
  std::vector<int64_t> state_words() const;
  // Values and placements of the frontier's filled entries.
  std::vector<int64_t> frontier_words() const;

 private:
  void lay_out(const spec::LayerView& v, int32_t frontier);

  const LayerRig& layer_;
  std::vector<std::vector<char>> arrays_;
  WalkTask task_;
  int32_t poison_;
};

}  // namespace test
}  // namespace gimbal
