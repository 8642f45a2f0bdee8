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

// What a backend keeps of one layer.
struct LayerTables {
  std::vector<int64_t> expert_tokens;  // [experts]
  std::vector<int64_t> comm_fine;      // [gpus][experts]
  spec::FineLayer fine;
  spec::LayerView view;
  spec::SearchScale scale;
};

// What spec::read_candidate says of a candidate, and the live part that it copied, [gpus][slots].
struct CandidateReading {
  int32_t bad_slot = 0;
  std::vector<int32_t> live;
};

class LayerRig {
 public:
  LayerRig(const CpuKernels& kernels, const ProblemInput& in, const Quantised& q, int32_t layer, int32_t poison = 0x2A2A2A2A);
  LayerRig(const LayerRig&) = delete;

  const CpuKernels& kernels() const { return kernels_; }
  const LayerTables& tables() const { return tables_; }
  const spec::LayerView& view() const { return tables_.view; }
  const Incumbent& incumbent() const { return incumbent_; }
  bool has_incumbent() const { return tables_.view.held != nullptr; }

  // Exact terms of a placement [gpus][slots]; without migrations where `held` is null.
  spec::FineTerms evaluate(const std::vector<int32_t>& placement, const uint8_t* held = nullptr) const;
  // Of a candidate [all_gpus][slots].
  CandidateReading read_candidate(const Quantised& q, const std::vector<int32_t>& candidate) const;
  int64_t bound(const spec::FineWeights& weights, int64_t migration, int32_t iterations) const;

  // All search tables one after the other, for comparisons.
  std::vector<int32_t> search_tables() const;

 private:
  int32_t* take(size_t cells);
  // The Team's scratch, for ranges of up to `cells` candidates.
  std::vector<int32_t> scores(size_t cells = 0) const;

  friend class WalkRig;
  const CpuKernels& kernels_;
  const int32_t poison_;
  std::vector<std::vector<int32_t>> arrays_;
  LayerTables tables_;
  Incumbent incumbent_;
};

struct WalkOptions {
  spec::WalkPlan plan;
  int32_t frontier = 0;
  const int32_t* start = nullptr;  // [gpus][slots]; null: construct
  int32_t poison = 0x2A2A2A2A;
};

class WalkRig {
 public:
  WalkRig(const LayerRig& layer, const WalkOptions& options);
  WalkRig(const WalkRig&) = delete;

  // Walks on to step `until`. Returns false where cancelled.
  bool walk(int64_t until, const std::atomic<bool>* cancel = nullptr);

  const spec::Walker& state() const { return walker_; }
  const spec::WalkProgress& progress() const { return progress_; }
  // The best placement so far, [gpus][slots].
  std::vector<int32_t> best() const { return transposed(walker_.best_expert); }
  // All that the walk leaves behind: the best placement, or with a budget that for each number of migrations that has one.
  std::vector<std::vector<int32_t>> kept() const;

  // The placement at hand and the incremental sums, one after the other, for comparisons.
  std::vector<int64_t> state_words() const;
  // Values and placements of the frontier's filled entries.
  std::vector<int64_t> frontier_words() const;

 private:
  std::vector<int32_t> transposed(const int32_t* expert) const;

  const LayerRig& layer_;
  const WalkOptions options_;
  std::vector<std::vector<char>> arrays_;
  std::vector<int32_t> scores_;
  spec::Walker walker_{};
  spec::WalkProgress progress_;
};

}  // namespace test
}  // namespace gimbal
