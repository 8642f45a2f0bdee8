// What a backend does for the solver: fill tables, walk, price placements, prove bounds. All control flow stays in solve.cc;
// a sibling backend (CUDA) implements this interface over the same spec and returns the same integers.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "../spec/cost.h"
#include "../spec/layer.h"
#include "../spec/potential.h"
#include "../spec/table_types.h"
#include "threads.h"

namespace gimbal {

// Memory of one layer's tables, reused between plans.
struct LayerTables {
  std::vector<int64_t> expert_tokens;  // [experts]
  std::vector<int64_t> comm_fine;      // [gpus][experts]
  std::vector<int32_t> arena;          // the search tables
  spec::FineLayer fine;
  spec::LayerView view;
  spec::SearchScale scale;
};

// The pattern of the communication costs, found once for all layers.
struct CommPattern {
  std::vector<uint32_t> base;       // [sources]
  std::vector<int32_t> first;       // [gpus + 1]
  std::vector<int32_t> source;      // [exceptions]
  std::vector<uint32_t> magnitude;  // [exceptions]
  std::vector<uint8_t> below;       // [exceptions]
  spec::CostPattern view() const { return {base.data(), first.data(), source.data(), magnitude.data(), below.data()}; }
};

// One walk of one layer, resumable after any round: a walk of [0, b) and then [b, c) is the walk of [0, c).
struct WalkTask {
  const LayerTables* tables = nullptr;
  const int32_t* start = nullptr;  // [gpus][slots]; null: construct by the walker's variant
  int32_t walker = 0;
  uint64_t key = 0;
  spec::Temper temper;
  int64_t total_steps = 0;
  int32_t frontier = 0;  // with a budget: numbers of migrations to keep the best placement for
  // With a budget: the extra price of a new pair falls from `dearest` to `cheapest` over the walk.
  int32_t dearest = 0;
  int32_t cheapest = 0;
  // State and results.
  std::vector<char> memory;
  spec::Walker state;
  spec::Potential load_potential;
  spec::Potential comm_potential;
  int64_t steps_done = -1;  // -1: not started
  int64_t best_value = 0;  // search units
  std::vector<int32_t> best;  // [gpus][slots]
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string name() const = 0;
  virtual std::string detail() const = 0;
  // Fills `tables` but for view.held, which the caller sets. `fine` has everything but the tables.
  virtual void fill_tables(const spec::FineLayer& fine, const spec::FineWeights& weights, const CommPattern& pattern,
                           bool uniform_compute, bool allow_duplicates, LayerTables* tables) = 0;
  // Walks every task on to step `until` (or its total). Returns false where cancelled.
  virtual bool walk(std::vector<WalkTask*>& tasks, int64_t until, Threads& threads, const std::atomic<bool>* cancel,
                    const std::function<void()>& on_task) = 0;
  // Exact terms of `count` placements of one layer, each [gpus][slots] at `stride` elements apart.
  virtual void evaluate(const LayerTables& tables, const int32_t* placements, int64_t count, int64_t stride,
                        spec::FineTerms* terms) = 0;
  // A proved lower bound on the layer's J with new pairs at `migration` each.
  virtual int64_t bound(const LayerTables& tables, const spec::FineWeights& weights, int64_t migration,
                        int32_t iterations) = 0;
};


}  // namespace gimbal
