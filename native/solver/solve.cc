// All control flow of a plan: quantise, fill tables, walk, share the migration budget, rank exactly, audit, certify.
//
// Layers are independent but for the budget, so without one (and without a time limit, which must stop all layers after the
// same round) they go through in batches of the size that suits the backend. Every ranking is by exact integers, then fewer
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
#include "../spec/cost.h"
#include "../spec/search.h"
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

// What the solver itself knows of a layer from its tables on to its finished plan; the rest is the backend's.
struct LayerJob {
  int32_t layer = 0;
  int shift = 0;  // of the search's units
  Incumbent incumbent;
  std::vector<WalkOrder> walks;
  std::vector<FrontierPoint> points;  // the placements found, in exact terms; with a budget, the frontier
  int32_t chosen = -1;                // a placement's id
};

}  // namespace

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

struct Workspace::Impl {
  Threads threads;
  std::vector<LayerJob> jobs;
  std::map<Backend*, std::unique_ptr<LayerBatch>> batches;

  LayerBatch& batch_of(Backend& backend) {
    std::unique_ptr<LayerBatch>& batch = batches[&backend];
    if (batch == nullptr) batch = backend.make_batch();
    return *batch;
  }
};

Workspace::Workspace() : impl_(new Impl) {}
Workspace::~Workspace() = default;

namespace {

// Runs layers [0, layers) through `run(first, count)`, `most` at a time; where a device's memory does not hold so many, half as
// many from there on, as long as that is not below `least`.
template <class Run>
void in_batches(int32_t layers, int32_t most, int32_t least, Run run) {
  int32_t batch = most;
  for (int32_t first = 0; first < layers;) {
    const int32_t count = std::min(batch, layers - first);
    try {
      run(first, count);
      first += count;
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kDeviceMemory || count / 2 < least) throw;
      batch = count / 2;
    }
  }
}

class Planning {
 public:
  Planning(const ProblemInput& input, const SolveOptions& options, Backend& backend, Workspace::Impl& workspace)
      : in_(input), options_(options), ws_(workspace), backend_(backend) {
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
    const int32_t most = together ? q_.layers : std::min(q_.layers, backend_.layers_per_batch(ws_.threads.count()));
    batch_ = &ws_.batch_of(backend_);
    if (static_cast<int32_t>(ws_.jobs.size()) < most) ws_.jobs.resize(static_cast<size_t>(most));
    total_work_ = int64_t{q_.layers} * (int64_t{walkers_} * phases_ + walks_per_layer() - walkers_);
    in_batches(q_.layers, most, together ? most : 1, [this](int32_t first, int32_t count) { run_batch(first, count); });
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
    // Where an attempt with more layers has run out of memory, its work counts for nothing.
    if (first == batch_first_) work_done_ = work_before_;
    batch_first_ = first;
    work_before_ = work_done_;
    FillHooks hooks;
    hooks.held = [&](int32_t n, const int64_t* expert_tokens) {
      poll();
      return held_by_incumbent(first + n, expert_tokens, &job(n));
    };
    hooks.ready = [&](int32_t n, int shift, const spec::FineTerms& incumbent) { prepare(&job(n), shift, incumbent); };
    batch_->fill({&q_, &pattern_, first, count}, ws_.threads, hooks);
    if (!budgeted_) batch_->prove({q_.weights.migration}, bound_iterations_);
    walk(count);
    collect();
    if (budgeted_) {
      // The first phase's sweep over prices found each layer's curve; now every layer digs around its share of the budget.
      choose_within_budget(count);
      for (phase_ = 1; phase_ < phases_; ++phase_) {
        for (int32_t n = 0; n < count; ++n) prepare_phase(&job(n));
        walk(count);
        collect();
        choose_within_budget(count);
      }
      // sum over layers of min (J + price * migrations) - price * budget bounds the sum for every price >= 0.
      batch_->prove({q_.weights.migration, q_.weights.migration + dual_price_}, bound_iterations_);
    }
    std::vector<int32_t> chosen;
    for (int32_t n = 0; n < count; ++n) chosen.push_back(job(n).chosen);
    batch_->fetch(chosen);
    ws_.threads.parallel_for(count, [&](int64_t n) {
      poll();
      finish(static_cast<int32_t>(n));
    });
    plan_.kernel_ms += batch_->kernel_ms();
  }

  HeldPlacement held_by_incumbent(int32_t layer, const int64_t* expert_tokens, LayerJob* job) {
    job->layer = layer;
    job->points.clear();
    job->chosen = -1;
    job->incumbent.forced = 0;
    if (in_.incumbent == nullptr) return {};
    job->incumbent = read_incumbent(in_, q_, layer, expert_tokens);
    return {job->incumbent.held.data(), job->incumbent.start.data()};
  }

  void prepare(LayerJob* job, int shift, const spec::FineTerms& incumbent) {
    job->shift = shift;
    const bool has_incumbent = in_.incumbent != nullptr;
    if (has_incumbent) add_points(job, {{0, incumbent}});  // doing nothing is always a candidate
    job->walks.resize(static_cast<size_t>(walks_per_layer()));
    for (int32_t w = 0; w < walks_per_layer(); ++w) {
      WalkOrder& walk = job->walks[static_cast<size_t>(w)];
      const bool from_incumbent = has_incumbent && (budgeted_ ? w < walkers_ : w == walkers_);
      begin_walk(*job, w, &walk);
      walk.start = from_incumbent ? 0 : WalkOrder::kConstruct;
      if (budgeted_ && !from_incumbent) {
        walk.frontier = 0;
        walk.plan.temper = spec::walker_temper(w - walkers_);
      } else if (budgeted_) {
        // From a price at which nothing moves down to one at which anything may.
        const int64_t scale = std::min<int64_t>(worth(*job), int64_t{1} << spec::kSearchBits);
        walk.plan.dearest = static_cast<int32_t>(scale >> 1);
        walk.plan.cheapest = static_cast<int32_t>(scale >> 12);
      }
    }
  }

  void begin_walk(const LayerJob& job, int32_t walker, WalkOrder* walk) const {
    walk->plan = {};
    walk->plan.walker = walker;
    walk->plan.key = spec::stream_key(options_.seed, job.layer, walker);
    walk->plan.temper = budgeted_ ? spec::budget_temper() : spec::walker_temper(walker);
    walk->plan.total_steps = steps(rounds_in_phase());
    walk->frontier = budgeted_ ? frontier_size(job) : 0;
  }

  // Enough for several times a layer's fair share of the budget, and to pass through placements beyond it.
  int32_t frontier_size(const LayerJob& job) const {
    const int64_t cells = int64_t{q_.gpus} * q_.slots;
    const int64_t fair = q_.migration_budget / q_.layers + 1;
    return static_cast<int32_t>(std::min(cells, job.incumbent.forced + 4 * fair + 16) + 1);
  }

  // The incumbent's objective in search units.
  int64_t worth(const LayerJob& job) const { return job.points.front().objective >> job.shift; }

  // From the layer's choice on, at prices around the one that the budget has shown.
  void prepare_phase(LayerJob* job) {
    const int64_t most = int64_t{1} << spec::kSearchBits;
    const int64_t price = std::max<int64_t>(budget_price_ >> job->shift, 1);
    job->walks.resize(static_cast<size_t>(walkers_));
    for (int32_t w = 0; w < walkers_; ++w) {
      WalkOrder& walk = job->walks[static_cast<size_t>(w)];
      begin_walk(*job, w + fresh_walkers() + phase_ * walkers_, &walk);
      walk.start = job->chosen;
      walk.plan.dearest = static_cast<int32_t>(std::min(2 * price, most));
      walk.plan.cheapest = static_cast<int32_t>(std::min(price / 2, most));
    }
  }

  // The walk's rounds, cut into phases.
  int32_t rounds_in_phase() const {
    const int64_t rounds = rounds_;
    return static_cast<int32_t>(rounds * (phase_ + 1) / phases_ - rounds * phase_ / phases_);
  }

  void walk(int32_t count) {
    std::vector<std::vector<WalkOrder>> orders;
    for (int32_t n = 0; n < count; ++n) orders.push_back(job(n).walks);
    batch_->begin_walks(orders);
    const auto on_walks = [this](int64_t more) {
      const int64_t done = work_done_.fetch_add(more) + more;
      options_.progress(std::min(done, total_work_), total_work_);
    };
    const std::function<void(int64_t)> report = options_.progress ? on_walks : std::function<void(int64_t)>();
    const int64_t all = steps(rounds_in_phase());
    if (options_.time_limit_ms <= 0) {
      if (!batch_->walk(all, ws_.threads, options_.cancel, report)) poll();
      rounds_run_ = phase_ == 0 ? rounds_in_phase() : rounds_run_ + rounds_in_phase();
      return;
    }
    // Round by round, so that every layer has had as many when the time is up. At least one round always runs.
    const int64_t per_round = spec::steps_per_round(q_.gpus);
    const double share = (phase_ + 1.0) / phases_;
    for (int64_t until = per_round;; until += per_round) {
      const bool last = until >= all;
      if (!batch_->walk(until, ws_.threads, options_.cancel, last ? report : std::function<void(int64_t)>())) poll();
      ++rounds_run_;
      if (last || ms_since(started_) >= share * options_.time_limit_ms) return;
    }
  }

  void add_points(LayerJob* job, const std::vector<Found>& found) const {
    for (const Found& f : found) {
      FrontierPoint point;
      point.migrations = f.terms.migrations - job->incumbent.forced;
      point.objective = spec::fine_objective(q_.weights, f.terms);
      point.id = f.id;
      job->points.push_back(point);
    }
  }

  // Takes what the walks found; each with its exact cost.
  void collect() {
    batch_->collect(!budgeted_, ws_.threads, [this](int32_t n, const std::vector<Found>& found) {
      if (budgeted_) {
        add_points(&job(n), found);
        keep_efficient(&job(n).points);
        return;
      }
      job(n).points.clear();
      add_points(&job(n), found);
      job(n).chosen = found.front().id;
    });
  }

  void choose_within_budget(int32_t count) {
    std::vector<std::vector<FrontierPoint>> layers;
    for (int32_t n = 0; n < count; ++n) layers.push_back(job(n).points);
    const BudgetShare share = share_budget(layers, q_.migration_budget);
    for (int32_t n = 0; n < count; ++n) {
      job(n).chosen = job(n).points[static_cast<size_t>(share.choice[static_cast<size_t>(n)])].id;
    }
    std::vector<std::vector<int32_t>> ids(layers.size());
    for (size_t n = 0; n < layers.size(); ++n) {
      for (const FrontierPoint& point : layers[n]) ids[n].push_back(point.id);
      std::sort(ids[n].begin(), ids[n].end());
    }
    batch_->keep(ids);
    budget_price_ = share.price;
    // Any price proves a bound; this one also keeps its sums in 64 bits.
    const int64_t pairs = int64_t{q_.layers} * (int64_t{q_.experts} + int64_t{q_.gpus} * q_.slots) + q_.migration_budget;
    dual_price_ = std::min(budget_price_, (int64_t{1} << 60) / pairs);
  }

  // Writes the chosen placement in the caller's GPU ids, audits it, and proves its bound.
  void finish(int32_t n) {
    LayerJob* const job = &this->job(n);
    const size_t slots = static_cast<size_t>(q_.slots);
    const size_t width = static_cast<size_t>(q_.all_gpus) * slots;
    int32_t* out = plan_.physical_to_logical.data() + static_cast<size_t>(job->layer) * width;
    int32_t* replicas = plan_.replica_count.data() + static_cast<size_t>(job->layer) * static_cast<size_t>(q_.experts);
    const int32_t* chosen = batch_->placement(n);
    std::fill_n(replicas, q_.experts, 0);
    for (int32_t g = 0; g < q_.gpus; ++g) {
      int32_t* row = out + static_cast<size_t>(q_.gpu_id[static_cast<size_t>(g)]) * slots;
      std::copy_n(chosen + static_cast<size_t>(g) * slots, slots, row);
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
    report(n, *job, audit);
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

  void report(int32_t n, const LayerJob& job, const AuditedLayer& audit) {
    LayerReport& r = plan_.layers[static_cast<size_t>(job.layer)];
    r.objective_ns = static_cast<double>(audit.objective) * q_.objective_unit_ns;
    r.load_max_ns = static_cast<double>(audit.load_max) * q_.cost_unit_ns;
    r.comm_max_ns = static_cast<double>(audit.comm_max) * q_.cost_unit_ns;
    r.comm_total_ns = static_cast<double>(audit.comm_total) * q_.cost_unit_ns;
    r.source_max_ns = static_cast<double>(audit.source_max) * q_.cost_unit_ns;
    r.migrations = audit.migrations;
    r.forced_migrations = in_.incumbent == nullptr ? 0 : job.incumbent.forced;
    const int64_t bound = std::min(batch_->bound(n, 0), audit.objective);
    r.lower_bound_ns = static_cast<double>(bound) * q_.objective_unit_ns;
    r.gap = gap(r.objective_ns, r.lower_bound_ns);
    if (budgeted_) {
      const int64_t with_price = batch_->bound(n, 1);
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
  LayerBatch* batch_ = nullptr;
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
  int32_t batch_first_ = -1;
  int64_t work_before_ = 0;  // the batch at hand
  std::atomic<int64_t> work_done_{0};
  int64_t total_work_ = 0;
  Plan plan_;
};

// What is wrong with a candidate layer [all_gpus][slots] whose first slot at fault is `slot`.
std::string candidate_fault(const Quantised& q, const int32_t* candidate, int32_t slot) {
  const int32_t e = candidate[slot];
  if (q.live_index[static_cast<size_t>(slot / q.slots)] < 0 && e != -1) return "-1 on the slots of a dead GPU";
  if (q.live_index[static_cast<size_t>(slot / q.slots)] >= 0 && (e < 0 || e >= q.experts)) {
    return "expert ids from 0 to " + std::to_string(q.experts - 1);
  }
  const int32_t* const end = candidate + int64_t{q.all_gpus} * q.slots;
  int32_t missing = 0;
  while (std::find(candidate, end, missing) != end) ++missing;
  return "a replica of every expert (expert " + std::to_string(missing) + " has none)";
}

class Evaluating {
 public:
  Evaluating(const ProblemInput& problem, const int32_t* candidates, int64_t count, const SolveOptions& options,
             Backend& backend, Workspace::Impl& workspace)
      : in_(problem), candidates_(candidates), count_(count), options_(options), backend_(backend), ws_(workspace) {}

  Evaluation run() {
    q_ = quantise(in_);
    check_incumbent(in_);
    pattern_ = find_pattern(q_);
    ws_.threads.resize(Planning::threads_wanted(options_));
    const size_t cells = static_cast<size_t>(count_) * static_cast<size_t>(q_.layers);
    for (auto* column : {&out_.objective_ns, &out_.load_max_ns, &out_.comm_max_ns, &out_.comm_total_ns, &out_.migrations}) {
      column->assign(cells, 0);
    }
    const int32_t most = std::min(q_.layers, backend_.layers_per_batch(ws_.threads.count()));
    in_batches(q_.layers, most, 1, [this](int32_t first, int32_t count) { run_batch(first, count); });
    if (fault_candidate_ < count_) throw_fault();
    return std::move(out_);
  }

 private:
  void run_batch(int32_t first, int32_t count) {
    std::vector<Incumbent> incumbents(static_cast<size_t>(count));
    FillHooks hooks;
    hooks.held = [&](int32_t n, const int64_t* expert_tokens) -> HeldPlacement {
      if (in_.incumbent == nullptr) return {};
      Incumbent& incumbent = incumbents[static_cast<size_t>(n)];
      incumbent = read_incumbent(in_, q_, first + n, expert_tokens);
      return {incumbent.held.data(), incumbent.start.data()};
    };
    hooks.ready = [](int32_t, int, const spec::FineTerms&) {};
    LayerBatch& layers = ws_.batch_of(backend_);
    layers.fill({&q_, &pattern_, first, count}, ws_.threads, hooks);
    const size_t cells = static_cast<size_t>(count_) * static_cast<size_t>(count);
    terms_.resize(cells);
    bad_slot_.resize(cells);
    if (!layers.evaluate(candidates_, count_, q_.layers, ws_.threads, options_.cancel, {terms_.data(), bad_slot_.data()})) {
      throw Error(ErrorCode::kCancelled, "evaluation", "to finish", "a cancellation");
    }
    out_.kernel_ms += layers.kernel_ms();
    for (int64_t c = 0; c < count_; ++c) {
      for (int32_t n = 0; n < count; ++n) take(c, first + n, static_cast<size_t>(c * count + n));
    }
  }

  void take(int64_t candidate, int32_t layer, size_t from) {
    if (bad_slot_[from] >= 0) {
      if (candidate < fault_candidate_) {  // layers come in order, so the first of a candidate is the one to name
        fault_candidate_ = candidate;
        fault_layer_ = layer;
        fault_slot_ = bad_slot_[from];
      }
      return;
    }
    const spec::FineTerms& terms = terms_[from];
    const size_t at = static_cast<size_t>(candidate * q_.layers + layer);
    out_.objective_ns[at] = static_cast<double>(spec::fine_objective(q_.weights, terms)) * q_.objective_unit_ns;
    out_.load_max_ns[at] = static_cast<double>(terms.load_max) * q_.cost_unit_ns;
    out_.comm_max_ns[at] = static_cast<double>(terms.comm_max) * q_.cost_unit_ns;
    out_.comm_total_ns[at] = static_cast<double>(terms.comm_total) * q_.cost_unit_ns;
    out_.migrations[at] = static_cast<double>(terms.migrations);
  }

  [[noreturn]] void throw_fault() const {
    const int64_t width = int64_t{q_.all_gpus} * q_.slots;
    const int32_t* candidate = candidates_ + (fault_candidate_ * q_.layers + fault_layer_) * width;
    throw Error(ErrorCode::kInvalidInput, "candidates", candidate_fault(q_, candidate, fault_slot_),
                std::to_string(candidate[fault_slot_]) + " in candidate " + std::to_string(fault_candidate_) + ", layer " +
                    std::to_string(fault_layer_) + ", slot " + std::to_string(fault_slot_));
  }

  const ProblemInput& in_;
  const int32_t* candidates_;
  const int64_t count_;
  const SolveOptions& options_;
  Backend& backend_;
  Workspace::Impl& ws_;
  Quantised q_;
  CommPattern pattern_;
  std::vector<spec::FineTerms> terms_;  // [candidates][layers of the batch]
  std::vector<int32_t> bad_slot_;       // the same
  int64_t fault_candidate_ = INT64_MAX;
  int32_t fault_layer_ = 0;
  int32_t fault_slot_ = 0;
  Evaluation out_;
};

}  // namespace

Plan plan_placement(const ProblemInput& problem, const SolveOptions& options, Workspace& workspace) {
  const Selection selected = select_backend(options.backend, options.device);
  Planning planning(problem, options, selected.backend, workspace.impl());
  Plan plan = planning.run();
  plan.backend_reason = selected.reason;
  return plan;
}

Evaluation evaluate_placements(const ProblemInput& problem, const int32_t* candidates, int64_t count,
                               const SolveOptions& options, Workspace& workspace) {
  const Selection selected = select_backend(options.backend, options.device);
  Evaluating evaluating(problem, candidates, count, options, selected.backend, workspace.impl());
  Evaluation evaluation = evaluating.run();
  evaluation.backend = selected.backend.name();
  evaluation.backend_reason = selected.reason;
  return evaluation;
}

}  // namespace gimbal
