// All control flow of a plan: quantise, fill tables, walk, share the migration budget, rank exactly, audit, certify.
//
// Layers are independent but for the budget, so without one (and without a time limit, which must stop all layers after the
// same round) they go through in small batches whose tables stay in cache. Every ranking is by exact integers, then fewer
// migrations, then the walker's number; nothing depends on which thread did what.
#include "solve.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <mutex>
#include <string>
#include <thread>

#include "../model/audit.h"
#include "../model/errors.h"
#include "../model/incumbent.h"
#include "../model/quantise.h"
#include "../spec/search.h"
#include "../spec/tables.h"
#include "backend.h"
#include "budget.h"
#include "registry.h"
#include "threads.h"

namespace gimbal {
namespace {

using Clock = std::chrono::steady_clock;

struct EffortPreset {
  int32_t walkers;
  int32_t rounds;
  int32_t bound_iterations;
};

// Small layers are cheap to walk and rugged to search: they get more walkers, of more kinds, for the same effort.
EffortPreset preset(Effort effort, int64_t cells) {
  constexpr int64_t kSmallCells = 128;
  constexpr int64_t kCellsPerEffort = 384;
  const int32_t more = cells < kSmallCells ? static_cast<int32_t>(std::min<int64_t>(kCellsPerEffort / cells, 48)) : 1;
  switch (effort) {
    case Effort::kFast:
      return {more, 1, 4};
    case Effort::kBalanced:
      return {more, 16, 30};
    default:
      return {4 * more, 128, 200};
  }
}

// A budgeted plan is a harder search: its rounds are cut into phases that agree on a price in between, with more walkers.
constexpr int32_t kBudgetPhases = 8;
constexpr int32_t kBudgetWalkers = 4;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// The frequent cost of each row, and each GPU's exceptions to it.
CommPattern find_pattern(const Quantised& q) {
  CommPattern p;
  const size_t gpus = static_cast<size_t>(q.gpus);
  for (int32_t s = 0; s < q.sources; ++s) {
    const uint32_t* row = q.comm_cost.data() + static_cast<size_t>(s) * gpus;
    std::map<uint32_t, int32_t> counts;
    for (size_t g = 0; g < gpus; ++g) ++counts[row[g]];
    const auto most = std::max_element(counts.begin(), counts.end(),
                                       [](const auto& a, const auto& b) { return a.second < b.second; });
    p.base.push_back(most->first);
  }
  p.first.push_back(0);
  for (size_t g = 0; g < gpus; ++g) {
    for (int32_t s = 0; s < q.sources; ++s) {
      const uint32_t cost = q.comm_cost[static_cast<size_t>(s) * gpus + g];
      const uint32_t base = p.base[static_cast<size_t>(s)];
      if (cost == base) continue;
      p.source.push_back(s);
      p.below.push_back(cost < base ? 1 : 0);
      p.magnitude.push_back(cost < base ? base - cost : cost - base);
    }
    p.first.push_back(static_cast<int32_t>(p.source.size()));
  }
  return p;
}

// One layer's exact inputs, without the tables that a backend fills.
spec::FineLayer fine_layer(const Quantised& q, int32_t layer) {
  spec::FineLayer fine;
  fine.experts = q.experts;
  fine.gpus = q.gpus;
  fine.slots = q.slots;
  fine.sources = q.sources;
  fine.nearest = q.nearest;
  fine.tokens = q.tokens + static_cast<size_t>(layer) * static_cast<size_t>(q.sources) * static_cast<size_t>(q.experts);
  fine.compute_cost = q.compute_cost.data();
  fine.comm_cost = q.comm_cost.data();
  return fine;
}

// What a layer needs from its tables on to its finished plan.
struct LayerJob {
  int32_t layer = 0;
  LayerTables tables;
  Incumbent incumbent;
  std::vector<WalkTask> walks;
  // The placements found, in exact terms; with a budget, the frontier.
  std::vector<std::vector<int32_t>> placements;  // [gpus][slots] each
  std::vector<FrontierPoint> points;
  int32_t chosen = -1;  // into placements
};

}  // namespace

struct Workspace::Impl {
  Threads threads;
  std::vector<LayerJob> jobs;
};

Workspace::Workspace() : impl_(new Impl) {}
Workspace::~Workspace() = default;

namespace {

class Planning {
 public:
  Planning(const ProblemInput& input, const SolveOptions& options, Workspace::Impl& workspace)
      : in_(input), options_(options), ws_(workspace), backend_(select_backend(options.backend)) {
    check_options();
    q_ = quantise(input);
    check_incumbent(input);
    pattern_ = find_pattern(q_);
    ws_.threads.resize(threads_wanted(options));
    const EffortPreset p = preset(options.effort, int64_t{q_.gpus} * q_.slots);
    walkers_ = options.walkers > 0 ? options.walkers : p.walkers;
    rounds_ = options.rounds > 0 ? options.rounds : p.rounds;
    bound_iterations_ = p.bound_iterations;
    budgeted_ = input.incumbent != nullptr && q_.migration_budget >= 0 &&
                q_.migration_budget < int64_t{q_.layers} * q_.gpus * q_.slots;
    if (budgeted_) {
      if (options.rounds == 0) rounds_ = std::max(rounds_, kBudgetPhases);
      if (options.walkers == 0 && options.effort != Effort::kFast) walkers_ *= kBudgetWalkers;
      phases_ = std::min(kBudgetPhases, rounds_);
    }
  }

  static int32_t threads_wanted(const SolveOptions& options) {
    if (options.threads > 0) return options.threads;
    return std::max(1, static_cast<int32_t>(std::thread::hardware_concurrency()));
  }

  Plan run() {
    plan_.physical_to_logical.assign(
        static_cast<size_t>(q_.layers) * static_cast<size_t>(q_.all_gpus) * static_cast<size_t>(q_.slots), -1);
    plan_.replica_count.assign(static_cast<size_t>(q_.layers) * static_cast<size_t>(q_.experts), 0);
    plan_.layers.resize(static_cast<size_t>(q_.layers));
    const bool together = budgeted_ || options_.time_limit_ms > 0;
    const int32_t batch = together ? q_.layers : std::min(q_.layers, std::max(8, 4 * ws_.threads.count()));
    if (static_cast<int32_t>(ws_.jobs.size()) < batch) ws_.jobs.resize(static_cast<size_t>(batch));
    total_work_ = int64_t{q_.layers} * (int64_t{walkers_} * phases_ + walks_per_layer() - walkers_);
    for (int32_t first = 0; first < q_.layers; first += batch) {
      run_batch(first, std::min(batch, q_.layers - first));
    }
    total();
    return std::move(plan_);
  }

 private:
  void check_options() const {
    const auto refuse = [](const char* field, const char* expected, const std::string& received) {
      throw Error(ErrorCode::kInvalidInput, field, expected, received);
    };
    if (options_.walkers < 0 || options_.walkers > 65536) {
      refuse("walkers", "1 to 65536", std::to_string(options_.walkers));
    }
    if (options_.rounds < 0) refuse("rounds", "a positive number", std::to_string(options_.rounds));
    if (options_.threads < 0 || options_.threads > 1024) {
      refuse("threads", "1 to 1024", std::to_string(options_.threads));
    }
    if (!(options_.time_limit_ms >= 0)) refuse("timeLimitMs", "a positive time", std::to_string(options_.time_limit_ms));
  }

  void poll() const {
    if (options_.cancel != nullptr && options_.cancel->load(std::memory_order_relaxed)) {
      throw Error(ErrorCode::kCancelled, "plan", "to finish", "a cancellation");
    }
  }

  // Without a budget the incumbent's walker comes on top of the fresh ones. With one, walkers start from the incumbent, and
  // where the budget could pay for much of a layer, as many fresh ones go along in the first phase.
  int32_t walks_per_layer() const {
    if (in_.incumbent == nullptr) return walkers_;
    if (!budgeted_) return walkers_ + 1;
    return phase_ == 0 ? walkers_ + fresh_walkers() : walkers_;
  }

  int32_t fresh_walkers() const {
    return 4 * q_.migration_budget >= int64_t{q_.gpus} * q_.slots ? walkers_ : 0;
  }

  int64_t steps(int32_t rounds) const { return int64_t{rounds} * spec::steps_per_round(q_.gpus); }

  LayerJob& job(int32_t n) { return ws_.jobs[static_cast<size_t>(n)]; }

  void run_batch(int32_t first, int32_t count) {
    ws_.threads.parallel_for(count, [&](int64_t n) {
      poll();
      prepare(first + static_cast<int32_t>(n), &job(static_cast<int32_t>(n)));
    });
    walk(count);
    ws_.threads.parallel_for(count, [&](int64_t n) { collect(&job(static_cast<int32_t>(n))); });
    if (budgeted_) {
      // The first phase's sweep over prices found each layer's curve; now every layer digs around its share of the budget.
      choose_within_budget(count);
      for (phase_ = 1; phase_ < phases_; ++phase_) {
        ws_.threads.parallel_for(count, [&](int64_t n) { prepare_phase(&job(static_cast<int32_t>(n))); });
        walk(count);
        ws_.threads.parallel_for(count, [&](int64_t n) { collect(&job(static_cast<int32_t>(n))); });
        choose_within_budget(count);
      }
    }
    ws_.threads.parallel_for(count, [&](int64_t n) {
      poll();
      finish(&job(static_cast<int32_t>(n)));
    });
  }

  void prepare(int32_t layer, LayerJob* job) {
    job->layer = layer;
    job->placements.clear();
    job->points.clear();
    job->chosen = -1;
    LayerTables& tables = job->tables;
    backend_.fill_tables(fine_layer(q_, layer), q_.weights, pattern_, q_.uniform_compute, q_.allow_duplicates, &tables);
    const bool has_incumbent = in_.incumbent != nullptr;
    if (has_incumbent) {
      job->incumbent = read_incumbent(in_, q_, layer, tables.expert_tokens);
      tables.view.held = job->incumbent.held.data();
      tables.view.price = spec::to_search_price(q_.weights.migration, tables.scale.shift);
      add_placement(job, job->incumbent.start);  // doing nothing is always a candidate
    }
    job->walks.resize(static_cast<size_t>(walks_per_layer()));
    for (int32_t w = 0; w < walks_per_layer(); ++w) {
      WalkTask& walk = job->walks[static_cast<size_t>(w)];
      const bool from_incumbent = has_incumbent && (budgeted_ ? w < walkers_ : w == walkers_);
      begin_walk(*job, w, &walk);
      walk.start = from_incumbent ? job->incumbent.start.data() : nullptr;
      if (budgeted_ && !from_incumbent) {
        walk.frontier = 0;
        walk.temper = spec::walker_temper(w - walkers_);
      } else if (budgeted_) {
        // From a price at which nothing moves down to one at which anything may.
        const int64_t scale = std::min<int64_t>(worth(*job), int64_t{1} << spec::kSearchBits);
        walk.dearest = static_cast<int32_t>(scale >> 1);
        walk.cheapest = static_cast<int32_t>(scale >> 12);
      }
    }
  }

  void begin_walk(const LayerJob& job, int32_t walker, WalkTask* walk) const {
    walk->tables = &job.tables;
    walk->walker = walker;
    walk->key = spec::stream_key(options_.seed, job.layer, walker);
    walk->temper = budgeted_ ? spec::budget_temper() : spec::walker_temper(walker);
    walk->total_steps = steps(rounds_in_phase());
    walk->steps_done = -1;
    walk->best_value = 0;
    walk->dearest = walk->cheapest = 0;
    walk->frontier = budgeted_ ? frontier_size(job) : 0;
  }

  // Enough for several times a layer's fair share of the budget, and to pass through placements beyond it.
  int32_t frontier_size(const LayerJob& job) const {
    const int64_t cells = int64_t{q_.gpus} * q_.slots;
    const int64_t fair = q_.migration_budget / q_.layers + 1;
    return static_cast<int32_t>(std::min(cells, job.incumbent.forced + 4 * fair + 16) + 1);
  }

  // The incumbent's objective in search units.
  int64_t worth(const LayerJob& job) const { return job.points.front().objective >> job.tables.scale.shift; }

  // From the layer's choice on, at prices around the one that the budget has shown.
  void prepare_phase(LayerJob* job) {
    const int64_t most = int64_t{1} << spec::kSearchBits;
    const int64_t price = std::max<int64_t>(budget_price_ >> job->tables.scale.shift, 1);
    job->walks.resize(static_cast<size_t>(walkers_));
    for (int32_t w = 0; w < walkers_; ++w) {
      WalkTask& walk = job->walks[static_cast<size_t>(w)];
      begin_walk(*job, w + fresh_walkers() + phase_ * walkers_, &walk);
      walk.start = job->placements[static_cast<size_t>(job->chosen)].data();
      walk.dearest = static_cast<int32_t>(std::min(2 * price, most));
      walk.cheapest = static_cast<int32_t>(std::min(price / 2, most));
    }
  }

  // The walk's rounds, cut into phases.
  int32_t rounds_in_phase() const {
    const int64_t rounds = rounds_;
    return static_cast<int32_t>(rounds * (phase_ + 1) / phases_ - rounds * phase_ / phases_);
  }

  void walk(int32_t count) {
    std::vector<WalkTask*> tasks;
    for (int32_t w = 0; w < walks_per_layer(); ++w) {
      for (int32_t n = 0; n < count; ++n) tasks.push_back(&job(n).walks[static_cast<size_t>(w)]);
    }
    const auto on_task = [this] {
      if (!options_.progress) return;
      const int64_t done = work_done_.fetch_add(1) + 1;
      options_.progress(std::min(done, total_work_), total_work_);
    };
    const int64_t all = tasks.front()->total_steps;  // the same for all
    if (options_.time_limit_ms <= 0) {
      if (!backend_.walk(tasks, all, ws_.threads, options_.cancel, on_task)) poll();
      rounds_run_ = phase_ == 0 ? rounds_in_phase() : rounds_run_ + rounds_in_phase();
      return;
    }
    // Round by round, so that every layer has had as many when the time is up. At least one round always runs.
    const int64_t per_round = spec::steps_per_round(q_.gpus);
    const double share = (phase_ + 1.0) / phases_;
    for (int64_t until = per_round;; until += per_round) {
      const bool last = until >= all;
      if (!backend_.walk(tasks, until, ws_.threads, options_.cancel, last ? on_task : std::function<void()>())) poll();
      ++rounds_run_;
      if (last || ms_since(started_) >= share * options_.time_limit_ms) return;
    }
  }

  void add_placement(LayerJob* job, const std::vector<int32_t>& placement) {
    spec::FineTerms terms;
    backend_.evaluate(job->tables, placement.data(), 1, 0, &terms);
    if (in_.incumbent != nullptr) terms.migrations = count_new_pairs(q_, job->incumbent, placement.data());
    FrontierPoint point;
    point.migrations = terms.migrations - job->incumbent.forced;
    point.objective = spec::fine_objective(q_.weights, terms);
    point.id = static_cast<int32_t>(job->placements.size());
    job->points.push_back(point);
    job->placements.push_back(placement);
  }

  // Takes what the walks found; each with its exact cost.
  void collect(LayerJob* job) {
    const int32_t cells = q_.gpus * q_.slots;
    std::vector<int32_t> placement(static_cast<size_t>(cells));
    for (const WalkTask& walk : job->walks) {
      if (walk.frontier == 0) {
        add_placement(job, walk.best);
        continue;
      }
      const spec::LayerView& v = job->tables.view;
      for (int32_t m = 0; m < walk.frontier; ++m) {
        if (walk.state.frontier_value[m] == INT64_MAX) continue;
        const int32_t* from = walk.state.frontier_expert + int64_t{m} * v.slots * v.stride;
        for (int32_t h = 0; h < v.gpus; ++h) {
          for (int32_t k = 0; k < v.slots; ++k) placement[static_cast<size_t>(h * v.slots + k)] = from[k * v.stride + h];
        }
        add_placement(job, placement);
      }
    }
    if (budgeted_) {
      keep_efficient(&job->points);
      return;
    }
    const auto best = std::min_element(job->points.begin(), job->points.end(), [](const auto& a, const auto& b) {
      if (a.objective != b.objective) return a.objective < b.objective;
      return a.migrations < b.migrations;
    });
    job->chosen = best->id;
  }

  void choose_within_budget(int32_t count) {
    std::vector<std::vector<FrontierPoint>> layers;
    for (int32_t n = 0; n < count; ++n) layers.push_back(job(n).points);
    const BudgetShare share = share_budget(layers, q_.migration_budget);
    for (int32_t n = 0; n < count; ++n) {
      job(n).chosen = job(n).points[static_cast<size_t>(share.choice[static_cast<size_t>(n)])].id;
    }
    budget_price_ = share.price;
    // Any price proves a bound; this one also keeps its sums in 64 bits.
    const int64_t pairs = int64_t{q_.layers} * (int64_t{q_.experts} + int64_t{q_.gpus} * q_.slots) + q_.migration_budget;
    dual_price_ = std::min(budget_price_, (int64_t{1} << 60) / pairs);
  }

  // Writes the chosen placement in the caller's GPU ids, audits it, and proves its bound.
  void finish(LayerJob* job) {
    const size_t slots = static_cast<size_t>(q_.slots);
    const size_t width = static_cast<size_t>(q_.all_gpus) * slots;
    int32_t* out = plan_.physical_to_logical.data() + static_cast<size_t>(job->layer) * width;
    int32_t* replicas = plan_.replica_count.data() + static_cast<size_t>(job->layer) * static_cast<size_t>(q_.experts);
    const std::vector<int32_t>& chosen = job->placements[static_cast<size_t>(job->chosen)];
    for (int32_t g = 0; g < q_.gpus; ++g) {
      int32_t* row = out + static_cast<size_t>(q_.gpu_id[static_cast<size_t>(g)]) * slots;
      std::copy_n(chosen.begin() + static_cast<int64_t>(static_cast<size_t>(g) * slots), slots, row);
      keep_slots_in_place(*job, q_.gpu_id[static_cast<size_t>(g)], row);
      for (size_t k = 0; k < slots; ++k) ++replicas[row[k]];
    }
    AuditedLayer audit;
    try {
      audit = audit_layer(in_, q_, job->layer, out, "plan");
    } catch (const Error& broken) {
      throw Error(ErrorCode::kInternal, "audit", "a valid placement", broken.what());
    }
    int64_t claimed = 0;
    for (const FrontierPoint& p : job->points) {
      if (p.id == job->chosen) claimed = p.objective;
    }
    if (audit.objective != claimed) {
      throw Error(ErrorCode::kInternal, "audit", "the objective that the solver claims (" + std::to_string(claimed) + ")",
                  std::to_string(audit.objective) + " in layer " + std::to_string(job->layer));
    }
    report(*job, audit);
  }

  // Reordering inside a GPU is free; staying in the incumbent's slot is freer still (nothing to re-index).
  void keep_slots_in_place(const LayerJob& job, int32_t gpu, int32_t* row) const {
    if (in_.incumbent == nullptr || gpu >= in_.incumbent_gpus || in_.incumbent_slots_per_gpu != q_.slots) return;
    const size_t width = static_cast<size_t>(in_.incumbent_gpus) * static_cast<size_t>(q_.slots);
    const int32_t* before = in_.incumbent + static_cast<size_t>(job.layer) * width + static_cast<size_t>(gpu) * static_cast<size_t>(q_.slots);
    for (int32_t k = 0; k < q_.slots; ++k) {
      if (row[k] == before[k]) continue;
      for (int32_t n = 0; n < q_.slots; ++n) {
        if (row[n] == before[k] && row[n] != before[n]) {
          std::swap(row[k], row[n]);
          break;
        }
      }
    }
  }

  void report(const LayerJob& job, const AuditedLayer& audit) {
    LayerReport& r = plan_.layers[static_cast<size_t>(job.layer)];
    r.objective_ns = static_cast<double>(audit.objective) * q_.objective_unit_ns;
    r.load_max_ns = static_cast<double>(audit.load_max) * q_.cost_unit_ns;
    r.comm_max_ns = static_cast<double>(audit.comm_max) * q_.cost_unit_ns;
    r.comm_total_ns = static_cast<double>(audit.comm_total) * q_.cost_unit_ns;
    r.source_max_ns = static_cast<double>(audit.source_max) * q_.cost_unit_ns;
    r.migrations = audit.migrations;
    r.forced_migrations = in_.incumbent == nullptr ? 0 : job.incumbent.forced;
    int64_t bound = backend_.bound(job.tables, q_.weights, q_.weights.migration, bound_iterations_);
    bound = std::min(bound, audit.objective);
    r.lower_bound_ns = static_cast<double>(bound) * q_.objective_unit_ns;
    r.gap = gap(r.objective_ns, r.lower_bound_ns);
    if (budgeted_) {
      // sum over layers of min (J + price * migrations) - price * budget bounds the sum for every price >= 0.
      const int64_t with_price =
          backend_.bound(job.tables, q_.weights, q_.weights.migration + dual_price_, bound_iterations_);
      std::lock_guard<std::mutex> lock(dual_mutex_);
      dual_bound_ += with_price - dual_price_ * r.forced_migrations;
    }
  }

  static double gap(double objective, double bound) {
    if (bound > 0) return objective / bound - 1;
    return objective > 0 ? HUGE_VAL : 0;
  }

  void total() {
    for (const LayerReport& r : plan_.layers) {
      plan_.objective_ns += r.objective_ns;
      plan_.lower_bound_ns += r.lower_bound_ns;
      plan_.migrations += r.migrations;
      plan_.forced_migrations += r.forced_migrations;
    }
    if (budgeted_) {
      const double dual = static_cast<double>(dual_bound_ - dual_price_ * q_.migration_budget) * q_.objective_unit_ns;
      plan_.lower_bound_ns = std::min(std::max(plan_.lower_bound_ns, dual), plan_.objective_ns);
    }
    plan_.gap = gap(plan_.objective_ns, plan_.lower_bound_ns);
    plan_.backend = backend_.name();
    plan_.backend_detail = backend_.detail();
    plan_.seed = options_.seed;
    plan_.walkers = walkers_;
    plan_.rounds = rounds_run_;
    plan_.elapsed_ms = ms_since(started_);
  }

  const Clock::time_point started_ = Clock::now();
  const ProblemInput& in_;
  const SolveOptions& options_;
  Workspace::Impl& ws_;
  Backend& backend_;
  Quantised q_;
  CommPattern pattern_;
  int32_t walkers_ = 0;
  int32_t rounds_ = 0;
  int32_t rounds_run_ = 0;
  int32_t bound_iterations_ = 0;
  bool budgeted_ = false;
  int32_t phases_ = 1;
  int32_t phase_ = 0;
  int64_t budget_price_ = 0;
  int64_t dual_price_ = 0;
  std::mutex dual_mutex_;
  int64_t dual_bound_ = 0;
  std::atomic<int64_t> work_done_{0};
  int64_t total_work_ = 0;
  Plan plan_;
};

// Checks one candidate layer and writes it over the live GPUs. Returns the first bad slot, or -1; `why` says what is wrong.
int32_t read_candidate(const Quantised& q, const int32_t* candidate, int32_t* live, std::vector<int32_t>* seen,
                       std::string* why) {
  std::fill(seen->begin(), seen->end(), 0);
  for (int32_t g = 0; g < q.all_gpus; ++g) {
    const int32_t to = q.live_index[static_cast<size_t>(g)];
    for (int32_t k = 0; k < q.slots; ++k) {
      const int32_t slot = g * q.slots + k;
      const int32_t e = candidate[slot];
      if (to < 0) {
        if (e == -1) continue;
        *why = "-1 on the slots of a dead GPU";
        return slot;
      }
      if (e < 0 || e >= q.experts) {
        *why = "expert ids from 0 to " + std::to_string(q.experts - 1);
        return slot;
      }
      live[to * q.slots + k] = e;
      (*seen)[static_cast<size_t>(e)] = 1;
    }
  }
  const auto missing = std::find(seen->begin(), seen->end(), 0);
  if (missing == seen->end()) return -1;
  *why = "a replica of every expert (expert " + std::to_string(missing - seen->begin()) + " has none)";
  return 0;
}

// The first fault in candidate order, whichever thread found it.
struct FirstFault {
  std::mutex mutex;
  int64_t candidate = INT64_MAX;
  int32_t layer = 0;
  int32_t slot = 0;
  int32_t value = 0;
  std::string why;

  void note(int64_t c, int32_t l, int32_t s, int32_t v, const std::string& w) {
    std::lock_guard<std::mutex> lock(mutex);
    if (c > candidate || (c == candidate && l >= layer)) return;
    candidate = c;
    layer = l;
    slot = s;
    value = v;
    why = w;
  }
};

}  // namespace

Plan plan_placement(const ProblemInput& problem, const SolveOptions& options, Workspace& workspace) {
  Planning planning(problem, options, workspace.impl());
  return planning.run();
}

Evaluation evaluate_placements(const ProblemInput& problem, const int32_t* candidates, int64_t count,
                               const SolveOptions& options, Workspace& workspace) {
  Backend& backend = select_backend(options.backend);
  const Quantised q = quantise(problem);
  check_incumbent(problem);
  const CommPattern pattern = find_pattern(q);
  Threads& threads = workspace.impl().threads;
  threads.resize(Planning::threads_wanted(options));
  const int64_t width = int64_t{q.all_gpus} * q.slots;
  const size_t cells = static_cast<size_t>(count) * static_cast<size_t>(q.layers);
  Evaluation out;
  for (auto* column : {&out.objective_ns, &out.load_max_ns, &out.comm_max_ns, &out.comm_total_ns, &out.migrations}) {
    column->assign(cells, 0);
  }
  FirstFault fault;
  threads.parallel_for(q.layers, [&](int64_t layer) {
    LayerTables tables;
    backend.fill_tables(fine_layer(q, static_cast<int32_t>(layer)), q.weights, pattern, q.uniform_compute, q.allow_duplicates, &tables);
    Incumbent incumbent;
    if (problem.incumbent != nullptr) {
      incumbent = read_incumbent(problem, q, static_cast<int32_t>(layer), tables.expert_tokens);
    }
    std::vector<int32_t> live(static_cast<size_t>(q.gpus) * static_cast<size_t>(q.slots));
    std::vector<int32_t> seen(static_cast<size_t>(q.experts));
    std::string why;
    for (int64_t c = 0; c < count; ++c) {
      if (options.cancel != nullptr && options.cancel->load(std::memory_order_relaxed)) {
        throw Error(ErrorCode::kCancelled, "evaluation", "to finish", "a cancellation");
      }
      const int32_t* candidate = candidates + (c * q.layers + layer) * width;
      const int32_t bad = read_candidate(q, candidate, live.data(), &seen, &why);
      if (bad >= 0) {
        fault.note(c, static_cast<int32_t>(layer), bad, candidate[bad], why);
        return;
      }
      spec::FineTerms terms;
      backend.evaluate(tables, live.data(), 1, 0, &terms);
      if (problem.incumbent != nullptr) terms.migrations = count_new_pairs(q, incumbent, live.data());
      const size_t at = static_cast<size_t>(c * q.layers + layer);
      out.objective_ns[at] = static_cast<double>(spec::fine_objective(q.weights, terms)) * q.objective_unit_ns;
      out.load_max_ns[at] = static_cast<double>(terms.load_max) * q.cost_unit_ns;
      out.comm_max_ns[at] = static_cast<double>(terms.comm_max) * q.cost_unit_ns;
      out.comm_total_ns[at] = static_cast<double>(terms.comm_total) * q.cost_unit_ns;
      out.migrations[at] = static_cast<double>(terms.migrations);
    }
  });
  if (fault.candidate != INT64_MAX) {
    throw Error(ErrorCode::kInvalidInput, "candidates", fault.why,
                std::to_string(fault.value) + " in candidate " + std::to_string(fault.candidate) + ", layer " +
                    std::to_string(fault.layer) + ", slot " + std::to_string(fault.slot));
  }
  return out;
}

}  // namespace gimbal
