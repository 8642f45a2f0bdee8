// The CPU backend: one core per task, vectors across candidates, the instruction set chosen when the process starts.
// All of its memory is sized here; the kernels only fill it.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

#include "../../spec/cost.h"
#include "../../spec/tables.h"
#include "../backend.h"
#include "../registry.h"
#include "kernels.h"

namespace gimbal {
namespace {

// GIMBAL_CPU=portable|x86-64-v3|x86-64-v4 lowers the choice, for tests and for finding faults.
const CpuKernels& choose_kernels() {
#if defined(GIMBAL_X86_KERNELS)
  const char* forced = std::getenv("GIMBAL_CPU");
  const bool portable = forced != nullptr && std::strcmp(forced, "portable") == 0;
  const bool only_v3 = forced != nullptr && std::strcmp(forced, "x86-64-v3") == 0;
  if (!portable && !only_v3 && __builtin_cpu_supports("x86-64-v4")) return kernels_v4();
  if (!portable && __builtin_cpu_supports("x86-64-v3")) return kernels_v3();
#endif
  return kernels_base();
}

constexpr size_t kAlignment = 64;

template <class T>
T* aligned(T* p) {
  const size_t past = reinterpret_cast<uintptr_t>(p) % kAlignment;
  return past == 0 ? p : p + (kAlignment - past) / sizeof(T);
}

// Hands out the search tables from `arena`, each aligned to a whole vector; with null only counts the cells.
class TableArena {
 public:
  explicit TableArena(int32_t* arena) : arena_(arena) {}
  int32_t* take(size_t cells) {
    int32_t* here = arena_ == nullptr ? nullptr : arena_ + cells_;
    cells_ += (cells + 15) / 16 * 16;
    return here;
  }
  size_t cells() const { return cells_; }

 private:
  int32_t* arena_;
  size_t cells_ = 0;
};

spec::SearchTables lay_out_tables(const spec::FineLayer& fine, bool uniform, TableArena* arena) {
  const size_t experts = static_cast<size_t>(fine.experts);
  const size_t gpus = static_cast<size_t>(fine.gpus);
  const size_t stride = static_cast<size_t>(spec::padded_gpus(fine.gpus));
  const size_t sources = fine.nearest ? static_cast<size_t>(fine.sources) : 0;
  spec::SearchTables t;
  t.load = arena->take(uniform ? experts : experts * stride);
  t.load_t = uniform ? t.load : arena->take(gpus * experts);
  t.comm = arena->take(experts * stride);
  t.comm_t = arena->take(gpus * experts);
  t.source_load = arena->take(sources * experts);
  t.source_comm = arena->take(sources * experts);
  t.compute_factor = reinterpret_cast<uint32_t*>(arena->take(fine.nearest ? stride : 0));
  t.comm_factor = reinterpret_cast<uint32_t*>(arena->take(sources * stride));
  t.distance = reinterpret_cast<uint32_t*>(arena->take(sources * stride));
  return t;
}

// A thread's scratch for one call of a kernel at a time.
struct Scratch {
  std::vector<int64_t> wide;
  std::vector<int32_t> ids;
  std::vector<int32_t> scores;
  std::vector<char> bound;
};

template <class T>
T* at_least(std::vector<T>* array, size_t size) {
  if (array->size() < size) array->resize(size);
  return array->data();
}

Scratch& thread_scratch() {
  static thread_local Scratch scratch;
  return scratch;
}

int32_t* scores_for(const spec::FineLayer& fine) {
  return at_least(&thread_scratch().scores, team_scratch(fine.experts, fine.slots, spec::padded_gpus(fine.gpus)));
}

// One walk: its orders, its memory, and how far it is.
struct Walk {
  WalkOrder order;
  const int32_t* start = nullptr;
  std::vector<char> memory;
  spec::Walker walker;
  spec::WalkProgress progress;
};

struct Layer {
  std::vector<int64_t> expert_tokens;  // [experts]
  std::vector<int64_t> comm_fine;      // [gpus][experts]
  std::vector<int32_t> arena;          // the search tables
  spec::FineLayer fine;
  spec::LayerView view;
  spec::SearchScale scale;
  std::vector<Walk> walks;
  std::vector<std::vector<int32_t>> placements;  // by id, [gpus][slots] each; empty where it is not kept
  std::vector<Found> found;  // the incumbent's start, where there is one
};

class BatchCpu final : public LayerBatch {
 public:
  explicit BatchCpu(const CpuKernels& kernels) : kernels_(kernels) {}

  void fill(const BatchInputs& inputs, Threads& threads, const FillHooks& hooks) override {
    inputs_ = inputs;
    if (layers_.size() < static_cast<size_t>(inputs.count)) layers_.resize(static_cast<size_t>(inputs.count));
    threads.parallel_for(inputs.count, [&](int64_t n) {
      const int32_t at = static_cast<int32_t>(n);
      Layer& layer = this->layer(at);
      fill_tables(inputs.first + at, &layer);
      layer.placements.clear();
      layer.found.clear();
      const HeldPlacement incumbent = hooks.held(at, layer.expert_tokens.data());
      spec::FineTerms terms;
      if (incumbent.held != nullptr) {
        layer.view.held = incumbent.held;
        layer.view.price = spec::to_search_price(weights().migration, layer.scale.shift);
        layer.placements.emplace_back(incumbent.start, incumbent.start + cells(layer));
        terms = price(layer, incumbent.start);
        layer.found.assign(1, {0, terms});
      }
      hooks.ready(at, layer.scale.shift, terms);
    });
  }

  void prove(const std::vector<int64_t>& prices, int32_t iterations) override {
    bound_prices_ = prices;
    bound_iterations_ = iterations;
  }

  void begin_walks(const std::vector<std::vector<WalkOrder>>& layers) override {
    for (size_t n = 0; n < layers.size(); ++n) {
      Layer& layer = layers_[n];
      layer.walks.resize(layers[n].size());
      for (size_t w = 0; w < layers[n].size(); ++w) {
        Walk& walk = layer.walks[w];
        walk.order = layers[n][w];
        const int32_t start = walk.order.start;
        walk.start = start == WalkOrder::kConstruct ? nullptr : layer.placements[static_cast<size_t>(start)].data();
        walk.progress = {};
      }
    }
  }

  bool walk(int64_t until, Threads& threads, const std::atomic<bool>* cancel,
            const std::function<void(int64_t)>& on_walks) override {
    std::vector<std::pair<Layer*, Walk*>> tasks;
    size_t most = 0;
    for (int32_t n = 0; n < inputs_.count; ++n) most = std::max(most, layer(n).walks.size());
    for (size_t w = 0; w < most; ++w) {
      for (int32_t n = 0; n < inputs_.count; ++n) {
        if (w < layer(n).walks.size()) tasks.emplace_back(&layer(n), &layer(n).walks[w]);
      }
    }
    std::atomic<bool> finished{true};
    threads.parallel_for(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
      const auto& [layer, walk] = tasks[static_cast<size_t>(i)];
      // After a cancellation not even a start is built: there may be thousands of tasks.
      const bool stop = cancel != nullptr && cancel->load(std::memory_order_relaxed);
      if (stop || !walk_one(*layer, walk, until, cancel)) finished.store(false);
      if (on_walks) on_walks(1);
    });
    return finished.load();
  }

  void collect(bool best_only, Threads& threads,
               const std::function<void(int32_t, const std::vector<Found>&)>& then) override {
    threads.parallel_for(inputs_.count, [&](int64_t n) {
      Layer& layer = this->layer(static_cast<int32_t>(n));
      std::vector<Found> found;
      if (best_only) found = layer.found;
      for (const Walk& walk : layer.walks) {
        if (walk.order.frontier == 0) {
          found.push_back(add_placement(&layer, walk.walker.best_expert));
          continue;
        }
        for (int32_t m = 0; m < walk.order.frontier; ++m) {
          if (walk.walker.frontier_value[m] == INT64_MAX) continue;
          found.push_back(add_placement(&layer, walk.walker.frontier_expert + int64_t{m} * layer.view.slots * layer.view.stride));
        }
      }
      if (best_only) found.assign(1, best_of(found));
      then(static_cast<int32_t>(n), found);
    });
  }

  void keep(const std::vector<std::vector<int32_t>>& ids) override {
    for (size_t n = 0; n < ids.size(); ++n) {
      auto next = ids[n].begin();
      for (size_t id = 0; id < layers_[n].placements.size(); ++id) {
        if (next != ids[n].end() && *next == static_cast<int32_t>(id)) {
          ++next;
        } else {
          std::vector<int32_t>().swap(layers_[n].placements[id]);
        }
      }
    }
  }

  void fetch(const std::vector<int32_t>& ids) override { fetched_ = ids; }

  const int32_t* placement(int32_t n) const override {
    const size_t at = static_cast<size_t>(n);
    return layers_[at].placements[static_cast<size_t>(fetched_[at])].data();
  }

  int64_t bound(int32_t n, size_t which) override {
    const Layer& layer = this->layer(n);
    const spec::FineLayer& fine = layer.fine;
    const int32_t stride = layer.view.stride;
    spec::BoundScratch scratch;
    std::vector<char>& memory = thread_scratch().bound;
    at_least(&memory, spec::lay_out_bound(stride, fine.experts, nullptr, &scratch) + kAlignment);
    spec::lay_out_bound(stride, fine.experts, aligned(memory.data()), &scratch);
    return kernels_.bound(layer.view, fine, weights(), layer.scale.shift, bound_prices_[which], bound_iterations_, scratch,
                          scores_for(fine));
  }

  bool evaluate(const int32_t* candidates, int64_t count, int64_t layer_stride, Threads& threads,
                const std::atomic<bool>* cancel, const BatchEvaluation& out) override {
    const Quantised& q = *inputs_.problem;
    const int64_t width = int64_t{q.all_gpus} * q.slots;
    const spec::LiveGpus live_gpus{q.all_gpus, q.live_index.data()};
    std::atomic<bool> finished{true};
    threads.parallel_for(inputs_.count, [&](int64_t n) {
      const Layer& layer = this->layer(static_cast<int32_t>(n));
      std::vector<int32_t> live(cells(layer));
      std::vector<int32_t> replicas(static_cast<size_t>(q.experts));
      std::vector<int32_t> scores(std::max(team_scratch(q.experts, q.slots, layer.view.stride), static_cast<size_t>(width)));
      for (int64_t c = 0; c < count; ++c) {
        if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) {
          finished.store(false);
          return;
        }
        const int64_t at = c * inputs_.count + n;
        const int32_t* candidate = candidates + (c * layer_stride + inputs_.first + n) * width;
        out.bad_slot[at] =
            kernels_.read_candidate(layer.fine, live_gpus, candidate, live.data(), replicas.data(), scores.data());
        if (out.bad_slot[at] < 0) out.terms[at] = price(layer, live.data());
      }
    });
    return finished.load();
  }

 private:
  Layer& layer(int32_t n) { return layers_[static_cast<size_t>(n)]; }
  const spec::FineWeights& weights() const { return inputs_.problem->weights; }
  static size_t cells(const Layer& layer) {
    return static_cast<size_t>(layer.fine.gpus) * static_cast<size_t>(layer.fine.slots);
  }

  void fill_tables(int32_t id, Layer* out) const {
    const Quantised& q = *inputs_.problem;
    const spec::FineLayer fine = fine_layer(q, id);
    const size_t experts = static_cast<size_t>(fine.experts);
    out->fine = fine;
    out->expert_tokens.resize(experts);
    out->comm_fine.resize(static_cast<size_t>(fine.gpus) * experts);
    // `nearest` prices every (expert, GPU) pair by its sources, so it needs the full load table even on equal GPUs.
    const bool uniform = q.uniform_compute && !fine.nearest;
    TableArena count(nullptr);
    lay_out_tables(fine, uniform, &count);
    const size_t size = count.cells() + kAlignment / sizeof(int32_t);
    if (out->arena.size() < size) out->arena.resize(size);
    TableArena arena(aligned(out->arena.data()));
    const spec::SearchTables tables = lay_out_tables(fine, uniform, &arena);
    kernels_.fill_tables(weights(), inputs_.pattern->view(), uniform, tables, out->expert_tokens.data(),
                         out->comm_fine.data(), at_least(&thread_scratch().wide, 2 * experts), scores_for(fine), &out->fine,
                         &out->scale);
    out->view = spec::view_of(fine, tables, out->scale, uniform, q.allow_duplicates);
  }

  spec::FineTerms price(const Layer& layer, const int32_t* placement) const {
    const spec::FineLayer& fine = layer.fine;
    Scratch& scratch = thread_scratch();
    int32_t* const ids = at_least(&scratch.ids, static_cast<size_t>(fine.experts) + 1 + cells(layer));
    int64_t* const sums = at_least(&scratch.wide, 2 * static_cast<size_t>(fine.gpus));
    return kernels_.evaluate(fine, layer.view.held, placement, ids, sums, scores_for(fine));
  }

  // Takes a placement [slots][stride] over as [gpus][slots].
  Found add_placement(Layer* layer, const int32_t* expert) const {
    const spec::LayerView& v = layer->view;
    std::vector<int32_t> placement(cells(*layer));
    for (int32_t h = 0; h < v.gpus; ++h) {
      for (int32_t k = 0; k < v.slots; ++k) placement[static_cast<size_t>(h * v.slots + k)] = expert[k * v.stride + h];
    }
    const int32_t id = static_cast<int32_t>(layer->placements.size());
    const spec::FineTerms terms = price(*layer, placement.data());
    layer->placements.push_back(std::move(placement));
    return {id, terms};
  }

  Found best_of(const std::vector<Found>& found) const {
    return *std::min_element(found.begin(), found.end(), [&](const Found& a, const Found& b) {
      const int64_t left = spec::fine_objective(weights(), a.terms), right = spec::fine_objective(weights(), b.terms);
      if (left != right) return left < right;
      if (a.terms.migrations != b.terms.migrations) return a.terms.migrations < b.terms.migrations;
      return a.id < b.id;
    });
  }

  bool walk_one(const Layer& layer, Walk* walk, int64_t until, const std::atomic<bool>* cancel) const {
    const spec::LayerView& view = layer.view;
    if (walk->progress.steps_done < 0) {
      const int32_t frontier = walk->order.frontier;
      const spec::WalkerBytes bytes = spec::lay_out_walker(view, frontier, nullptr, nullptr, &walk->walker);
      char* const memory = aligned(at_least(&walk->memory, bytes.work + bytes.kept + kAlignment));
      spec::lay_out_walker(view, frontier, memory, memory + bytes.work, &walk->walker);
    }
    return kernels_.walk(view, walk->walker, walk->order.plan, walk->start, until, cancel, scores_for(layer.fine),
                         &walk->progress);
  }

  const CpuKernels& kernels_;
  BatchInputs inputs_;
  std::vector<Layer> layers_;
  std::vector<int64_t> bound_prices_;
  int32_t bound_iterations_ = 0;
  std::vector<int32_t> fetched_;
};

class ScorerCpu final : public Scorer {
 public:
  explicit ScorerCpu(const CpuKernels& kernels) : kernels_(kernels) {}

  // What stays in cache until it is taken.
  int64_t scores_at_once() const override { return int64_t{1} << 15; }
  void score(const spec::EngineColumns& engines, const spec::RequestColumns& requests, int64_t* pressure_us,
             int32_t* best) override {
    kernels_.score(engines, requests, pressure_us, best, at_least(&scores_, static_cast<size_t>(engines.count)));
  }

 private:
  const CpuKernels& kernels_;
  std::vector<int32_t> scores_;  // [engines]
};

class BackendCpu final : public Backend {
 public:
  BackendCpu() : kernels_(choose_kernels()) {}

  std::string name() const override { return "cpu"; }
  std::string detail() const override { return kernels_.name; }
  // Small batches, whose tables stay in cache.
  int32_t layers_per_batch(int32_t threads) const override { return std::max(8, 4 * threads); }
  std::unique_ptr<LayerBatch> make_batch() override { return std::make_unique<BatchCpu>(kernels_); }
  std::unique_ptr<Scorer> make_scorer() override { return std::make_unique<ScorerCpu>(kernels_); }

 private:
  const CpuKernels& kernels_;
};

}  // namespace

Backend& cpu_backend() {
  static BackendCpu backend;
  return backend;
}

}  // namespace gimbal
