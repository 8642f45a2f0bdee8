// What a backend does for the solver: fill tables, walk, price placements, prove bounds. All control flow stays in solve.cc;
// each backend runs the same spec over its own Teams and returns the same integers. For dispatch it scores requests on engines.
//
// Its unit of planning is a batch: some layers of one problem, with their tables, walks and placements in the backend's own
// memory, wherever that is. Only priced placements, and in the end the chosen ones, come back.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../model/quantise.h"
#include "../spec/score_columns.h"
#include "../spec/types.h"
#include "threads.h"

namespace gimbal {

// The pattern of the communication costs, found once for all layers.
struct CommPattern {
  std::vector<uint32_t> base;       // [sources]
  std::vector<int32_t> first;       // [gpus + 1]
  std::vector<int32_t> source;      // [exceptions]
  std::vector<uint32_t> magnitude;  // [exceptions]
  std::vector<uint8_t> below;       // [exceptions]
  spec::CostPattern view() const { return {base.data(), first.data(), source.data(), magnitude.data(), below.data()}; }
};

// Layers [first, first + count) of a problem. What it points to outlives the batch's use of it.
struct BatchInputs {
  const Quantised* problem = nullptr;
  const CommPattern* pattern = nullptr;
  int32_t first = 0;
  int32_t count = 0;
};

// One layer's exact inputs, without the tables that a backend fills.
spec::FineLayer fine_layer(const Quantised& q, int32_t layer);

// The placement in force, as the search takes it. The arrays outlive the batch's use of them.
struct HeldPlacement {
  const uint8_t* held = nullptr;   // [experts][stride]; null: there is none
  const int32_t* start = nullptr;  // [gpus][slots]
};

// A placement that a batch holds, with its exact terms. Ids rise in the order in which placements are found; the
// incumbent's start is 0.
struct Found {
  int32_t id = 0;
  spec::FineTerms terms;
};

struct WalkOrder {
  static constexpr int32_t kConstruct = -1;
  spec::WalkPlan plan;
  int32_t start = kConstruct;  // the id of the placement to start from
  int32_t frontier = 0;        // with a budget: numbers of migrations to keep the best placement for
};

// What a batch asks of the solver while it fills. Called for each layer n of the batch, perhaps from several threads at once.
struct FillHooks {
  // The layer's expert_tokens [experts] stand: which placement is in force? Null where none is.
  std::function<HeldPlacement(int32_t n, const int64_t* expert_tokens)> held;
  // The layer's tables stand, and the incumbent's start is priced.
  std::function<void(int32_t n, int shift, const spec::FineTerms& incumbent)> ready;
};

// The terms of candidates, each [candidates][layers of the batch].
struct BatchEvaluation {
  spec::FineTerms* terms = nullptr;
  int32_t* bad_slot = nullptr;  // -1: valid; else the first slot at fault, 0 where an expert has none at all
};

class LayerBatch {
 public:
  virtual ~LayerBatch() = default;

  // Starts over with these layers.
  virtual void fill(const BatchInputs& inputs, Threads& threads, const FillHooks& hooks) = 0;
  // Asks for the bound of every layer with new pairs at each of `prices`; may be worked on until bound() is called.
  virtual void prove(const std::vector<int64_t>& prices, int32_t iterations) = 0;
  // Sets out the walks of each layer; all have the same total_steps.
  virtual void begin_walks(const std::vector<std::vector<WalkOrder>>& layers) = 0;
  // Walks every walk on to step `until`, or its end. Returns false where cancelled. `on_walks(n)`: n more are there.
  virtual bool walk(int64_t until, Threads& threads, const std::atomic<bool>* cancel,
                    const std::function<void(int64_t)>& on_walks) = 0;
  // Prices what the walks of each layer found: all that they keep, or only the best placement of the layer, incumbent
  // included, by objective, then migrations, then id. `then` may run on several threads.
  virtual void collect(bool best_only, Threads& threads,
                       const std::function<void(int32_t n, const std::vector<Found>&)>& then) = 0;
  // Of all placements, only these will be asked for again. ids [layers][...], rising.
  virtual void keep(const std::vector<std::vector<int32_t>>& ids) = 0;
  // Brings back one placement of each layer, of none where its id is -1; placement() is valid until the next call of another method.
  virtual void fetch(const std::vector<int32_t>& ids) = 0;
  virtual const int32_t* placement(int32_t n) const = 0;  // [gpus][slots]
  // A proved lower bound on the layer's J at prices[which] of prove(). May be called from several threads.
  virtual int64_t bound(int32_t n, size_t which) = 0;
  // Prices candidates [count][layer_stride layers][all_gpus * slots], of which the batch's are [first, first + count).
  // Returns false where cancelled.
  virtual bool evaluate(const int32_t* candidates, int64_t count, int64_t layer_stride, Threads& threads,
                        const std::atomic<bool>* cancel, const BatchEvaluation& out) = 0;
  // How long kernels on a device of its own have taken since fill(), by the device's clock; 0 where there is none.
  virtual double kernel_ms() const { return 0; }
};

// Scores requests on engines. Keeps its memory between calls, and serves one at a time.
class Scorer {
 public:
  virtual ~Scorer() = default;
  // As many scores, requests times engines, as one call should make where the choice is free.
  virtual int64_t scores_at_once() const = 0;
  // spec::score_request of each: pressure_us [requests][engines], best [requests]. There is one engine at least.
  virtual void score(const spec::EngineColumns& engines, const spec::RequestColumns& requests, int64_t* pressure_us,
                     int32_t* best) = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string name() const = 0;
  virtual std::string detail() const = 0;
  // As many layers as a batch should have where the choice is free, on so many threads.
  virtual int32_t layers_per_batch(int32_t threads) const = 0;
  virtual std::unique_ptr<LayerBatch> make_batch() = 0;
  virtual std::unique_ptr<Scorer> make_scorer() = 0;
};

}  // namespace gimbal
