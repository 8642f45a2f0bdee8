// What a backend promises of a batch of layers, for every backend that this machine has: it finds what the portable kernels
// find, prices it as the audit does, keeps what it was told to keep, and goes on from there.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <atomic>
#include <memory>
#include <mutex>
#include <numeric>
#include <tuple>

#include "../model/audit.h"
#include "../solver/backend.h"
#include "../solver/registry.h"
#include "../spec/cost.h"
#include "../spec/search.h"
#include "backends.h"
#include "instance.h"
#include "layer_rig.h"

using namespace gimbal;
using namespace gimbal::test;

namespace {

using Placements = std::vector<std::vector<std::vector<int32_t>>>;  // [layers][found], [gpus][slots] each

// Some layers of a random problem, with the portable kernels' own view of each.
struct Layers {
  std::unique_ptr<Instance> instance;
  Quantised q;
  CommPattern pattern;
  int32_t first = 0;
  int32_t count = 0;
  std::vector<std::unique_ptr<LayerRig>> rigs;  // [count]

  const ProblemInput& in() const { return instance->input; }
  bool has_incumbent() const { return in().incumbent != nullptr; }
};

Layers draw_layers(Random& random) {
  DrawLimits limits;
  limits.layers = 5;
  Layers l;
  l.instance = draw_instance(random, limits);
  const ProblemInput& in = l.instance->problem();
  l.q = quantise(in);
  l.pattern = make_pattern(l.q, most_frequent);
  l.first = random.below(in.layers);
  l.count = random.between(1, in.layers - l.first);
  for (int32_t n = 0; n < l.count; ++n) l.rigs.push_back(std::make_unique<LayerRig>(kernels_base(), in, l.q, l.first + n));
  return l;
}

// Drives one batch, and checks what holds at every call.
class BatchRig {
 public:
  explicit BatchRig(Backend& backend, int32_t threads = 1) : batch_(backend.make_batch()) { threads_.resize(threads); }

  LayerBatch& batch() { return *batch_; }
  Threads& threads() { return threads_; }

  void fill(const Layers& layers) {
    layers_ = &layers;
    const size_t count = static_cast<size_t>(layers.count);
    std::vector<int32_t> asked(count, 0), ready(count, 0);
    std::mutex mutex;  // doctest's assertions come from several threads
    FillHooks hooks;
    hooks.held = [&](int32_t n, const int64_t* expert_tokens) -> HeldPlacement {
      std::lock_guard<std::mutex> lock(mutex);
      const LayerRig& rig = *layers.rigs[static_cast<size_t>(n)];
      const std::vector<int64_t>& expected = rig.tables().expert_tokens;
      CHECK(std::equal(expected.begin(), expected.end(), expert_tokens));
      ++asked[static_cast<size_t>(n)];
      if (!layers.has_incumbent()) return {};
      return {rig.incumbent().held.data(), rig.incumbent().start.data()};
    };
    hooks.ready = [&](int32_t n, int shift, const spec::FineTerms& terms) {
      std::lock_guard<std::mutex> lock(mutex);
      const LayerRig& rig = *layers.rigs[static_cast<size_t>(n)];
      CHECK(asked[static_cast<size_t>(n)] == 1);  // only then is it known who holds what
      ++ready[static_cast<size_t>(n)];
      CHECK(shift == rig.tables().scale.shift);
      if (layers.has_incumbent()) check_terms(n, rig.incumbent().start, terms);
    };
    batch_->fill({&layers.q, &layers.pattern, layers.first, layers.count}, threads_, hooks);
    CHECK(asked == std::vector<int32_t>(count, 1));
    CHECK(ready == std::vector<int32_t>(count, 1));
  }

  // Walks to step `until`; every walk is reported once.
  void walk(int64_t until, size_t walks) {
    std::atomic<int64_t> reported{0};
    REQUIRE(batch_->walk(until, threads_, nullptr, [&](int64_t more) { reported += more; }));
    REQUIRE(reported == static_cast<int64_t>(walks));
  }

  std::vector<std::vector<Found>> collect(bool best_only) {
    std::vector<std::vector<Found>> found(static_cast<size_t>(layers_->count));
    std::vector<int32_t> calls(found.size(), 0);
    batch_->collect(best_only, threads_, [&](int32_t n, const std::vector<Found>& here) {
      found[static_cast<size_t>(n)] = here;
      ++calls[static_cast<size_t>(n)];
    });
    REQUIRE(calls == std::vector<int32_t>(found.size(), 1));
    return found;
  }

  // The placements with these ids, one of each layer at a time. Terms are those of the audit.
  Placements fetch(const std::vector<std::vector<Found>>& found) {
    Placements all(found.size());
    size_t most = 0;
    for (const auto& layer : found) most = std::max(most, layer.size());
    for (size_t i = 0; i < most; ++i) {
      std::vector<int32_t> ids;
      for (const auto& layer : found) ids.push_back(layer.empty() ? -1 : layer[std::min(i, layer.size() - 1)].id);
      batch_->fetch(ids);
      for (size_t n = 0; n < found.size(); ++n) {
        if (i >= found[n].size()) continue;
        all[n].push_back(placement(static_cast<int32_t>(n)));
        check_terms(static_cast<int32_t>(n), all[n].back(), found[n][i].terms);
      }
    }
    return all;
  }

  std::vector<int32_t> placement(int32_t n) {
    const int32_t* from = batch_->placement(n);
    return std::vector<int32_t>(from, from + layers_->q.gpus * layers_->q.slots);
  }

 private:
  void check_terms(int32_t n, const std::vector<int32_t>& placement, const spec::FineTerms& terms) const {
    const std::vector<int32_t> all = over_all_gpus(layers_->q, placement.data());
    const AuditedLayer audit = audit_layer(layers_->in(), layers_->q, layers_->first + n, all.data(), "found");
    CHECK(terms.load_max == audit.load_max);
    CHECK(terms.comm_max == audit.comm_max);
    CHECK(terms.comm_total == audit.comm_total);
    CHECK(terms.migrations == audit.migrations);
  }

  Threads threads_;
  std::unique_ptr<LayerBatch> batch_;
  const Layers* layers_ = nullptr;
};

using Orders = std::vector<std::vector<WalkOrder>>;  // [layers][walks]

// Up to four walks of each layer, from wherever a walk may start, with and without a budget.
Orders draw_orders(Random& random, const Layers& layers, int64_t total_steps) {
  Orders orders(static_cast<size_t>(layers.count));
  for (size_t n = 0; n < orders.size(); ++n) {
    orders[n].resize(static_cast<size_t>(random.between(1, 4)));
    for (size_t w = 0; w < orders[n].size(); ++w) {
      WalkOrder& order = orders[n][w];
      const int32_t walker = random.below(9);
      order.plan.walker = walker;
      order.plan.key = spec::stream_key(random.bits(), static_cast<int32_t>(n), walker);
      order.plan.temper = spec::walker_temper(walker);
      order.plan.total_steps = total_steps;
      if (!layers.has_incumbent() || random.chance(0.3)) continue;
      order.start = 0;
      if (random.chance(0.4)) continue;
      order.plan.temper = spec::budget_temper();
      order.frontier = random.between(1, layers.q.gpus * layers.q.slots + 1);
      order.plan.dearest = static_cast<int32_t>(random.any_magnitude(22));
      order.plan.cheapest = static_cast<int32_t>(random.any_magnitude(12));
    }
  }
  return orders;
}

size_t count_walks(const Orders& orders) {
  return std::accumulate(orders.begin(), orders.end(), size_t{0}, [](size_t sum, const auto& layer) { return sum + layer.size(); });
}

// What the portable kernels find, in the order of the walks. `starts` [layers][walks]: null to construct.
Placements expected_of(const Layers& layers, const Orders& orders, const std::vector<std::vector<const int32_t*>>& starts) {
  Placements all(orders.size());
  for (size_t n = 0; n < orders.size(); ++n) {
    for (size_t w = 0; w < orders[n].size(); ++w) {
      WalkOptions options;
      options.plan = orders[n][w].plan;
      options.frontier = orders[n][w].frontier;
      options.start = starts[n][w];
      WalkRig walk(*layers.rigs[n], options);
      walk.walk(options.plan.total_steps);
      for (auto& placement : walk.kept()) all[n].push_back(placement);
    }
  }
  return all;
}

Placements expected_of(const Layers& layers, const Orders& orders) {
  std::vector<std::vector<const int32_t*>> starts(orders.size());
  for (size_t n = 0; n < orders.size(); ++n) {
    for (const WalkOrder& order : orders[n]) starts[n].push_back(order.start < 0 ? nullptr : layers.rigs[n]->incumbent().start.data());
  }
  return expected_of(layers, orders, starts);
}

// Ids rise in the order in which placements were found, all above `last`.
void check_ids_rise(const std::vector<Found>& found, int32_t last) {
  for (const Found& f : found) {
    CHECK(f.id > last);
    last = f.id;
  }
}

// Runs `body` for each backend over random layers.
template <class Body>
void over_layers(uint64_t streams, uint64_t from, Body body) {
  for (Backend* backend : backends()) {
    for (uint64_t stream = 0; stream < share_of(streams); ++stream) {
      Random random(stream + from);
      const Layers layers = draw_layers(random);
      INFO("backend " << backend->name() << ", seed " << base_seed() << ", stream " << stream << ": " << describe(*layers.instance));
      body(*backend, random, layers);
    }
  }
}

}  // namespace

TEST_CASE("batch: a CUDA plug-in that is named is used") {
  if (std::getenv("GIMBAL_CUDA_PLUGIN") == nullptr) return;
  const BackendInfo cuda = list_backends().back();
  INFO(cuda.reason);
  REQUIRE(cuda.name == "cuda");
  REQUIRE(cuda.available);
}

TEST_CASE("batch: walks find what the portable kernels find, priced as the audit prices it") {
  int32_t frontiers = 0, several = 0;
  over_layers(80, 30000, [&](Backend& backend, Random& random, const Layers& layers) {
    BatchRig rig(backend, random.between(1, 3));
    rig.fill(layers);
    const Orders orders = draw_orders(random, layers, 8 * random.between(1, 10));
    rig.batch().begin_walks(orders);
    rig.walk(orders[0][0].plan.total_steps, count_walks(orders));
    const auto found = rig.collect(false);
    REQUIRE(rig.fetch(found) == expected_of(layers, orders));
    for (const auto& layer : found) check_ids_rise(layer, layers.has_incumbent() ? 0 : -1);
    several += layers.count > 1;
    const auto keeps_frontier = [](const WalkOrder& order) { return order.frontier > 0; };
    for (const auto& layer : orders) frontiers += std::any_of(layer.begin(), layer.end(), keeps_frontier);
  });
  CHECK(happened(frontiers, 20));
  CHECK(happened(several, 20));
}

TEST_CASE("batch: a walk in pieces is the walk") {
  over_layers(60, 31000, [](Backend& backend, Random& random, const Layers& layers) {
    BatchRig rig(backend);
    rig.fill(layers);
    const int64_t total = 8 * random.between(1, 12);
    const Orders orders = draw_orders(random, layers, total);
    rig.batch().begin_walks(orders);
    for (int64_t until = 0; until < total;) {
      until += spec::kStepsPerTemperature * random.between(1, 4);
      rig.walk(until, count_walks(orders));
    }
    REQUIRE(rig.fetch(rig.collect(false)) == expected_of(layers, orders));
  });
}

TEST_CASE("batch: the best is the least of all that was found and of the incumbent, by objective, migrations and id") {
  int32_t stayed = 0, moved = 0;
  over_layers(100, 32000, [&](Backend& backend, Random& random, const Layers& layers) {
    BatchRig rig(backend, 2);
    Orders orders = draw_orders(random, layers, 8 * random.between(1, 6));
    if (random.chance(0.3)) {  // the same walk twice: a tie between ids
      for (auto& layer : orders) layer.push_back(layer.front());
    }
    const auto walk = [&] {
      rig.fill(layers);
      rig.batch().begin_walks(orders);
      rig.walk(orders[0][0].plan.total_steps, count_walks(orders));
    };
    walk();
    std::vector<std::vector<Found>> all = rig.collect(false);
    for (size_t n = 0; n < all.size() && layers.has_incumbent(); ++n) {
      const LayerRig& layer = *layers.rigs[n];
      all[n].insert(all[n].begin(), {0, layer.evaluate(layer.incumbent().start, layer.view().held)});
    }
    const Placements placements = rig.fetch(all);
    walk();
    const auto best = rig.collect(true);
    const Placements chosen = rig.fetch(best);
    for (size_t n = 0; n < all.size(); ++n) {
      if (all[n].empty()) continue;  // a budget's walks may pass through nothing but what is beyond their frontier
      size_t least = 0;
      const auto rank = [&](size_t i) {
        return std::make_tuple(spec::fine_objective(layers.q.weights, all[n][i].terms), all[n][i].terms.migrations, all[n][i].id);
      };
      for (size_t i = 1; i < all[n].size(); ++i) {
        if (rank(i) < rank(least)) least = i;
      }
      REQUIRE(best[n].size() == 1);
      REQUIRE(chosen[n][0] == placements[n][least]);
      (layers.has_incumbent() && least == 0 ? stayed : moved) += 1;
    }
  });
  CHECK(happened(stayed, 5));
  CHECK(happened(moved, 50));
}

TEST_CASE("batch: among placements of one objective the best has the fewest migrations, whatever its id") {
  // Free moves and equal sums of two: constructed, the three pairs lie anywhere; from the incumbent, one pair stays.
  Layers layers;
  layers.instance = std::make_unique<Instance>();
  ProblemInput& in = layers.instance->input;
  in.layers = in.sources = 1;
  in.experts = 6;
  in.gpus = 3;
  in.slots_per_gpu = 2;
  layers.instance->tokens = {6000, 5000, 4000, 3000, 2000, 1000};
  in.compute_cost_ns.assign(3, 1.0);
  in.comm_cost_ns.assign(3, 0.0);
  layers.instance->incumbent = {0, 1, 2, 3, 4, 5};
  in.incumbent_gpus = 3;
  in.incumbent_slots_per_gpu = 2;
  layers.instance->problem();
  layers.q = quantise(in);
  layers.pattern = make_pattern(layers.q, most_frequent);
  layers.count = 1;
  layers.rigs.push_back(std::make_unique<LayerRig>(kernels_base(), in, layers.q, 0));
  for (Backend* backend : backends()) {
    INFO("backend " << backend->name());
    BatchRig rig(*backend);
    int32_t ties = 0;
    for (uint64_t key = 0; key < 20; ++key) {
      Orders orders(1, std::vector<WalkOrder>(2));
      for (WalkOrder& order : orders[0]) {
        order.plan.key = key;
        order.plan.total_steps = 64;
      }
      orders[0][1].start = 0;
      const auto walk = [&](bool best_only) {
        rig.fill(layers);
        rig.batch().begin_walks(orders);
        rig.walk(64, 2);
        return rig.collect(best_only)[0];
      };
      const std::vector<Found> all = walk(false);
      const auto objective = [&](const Found& f) { return spec::fine_objective(layers.q.weights, f.terms); };
      if (objective(all[0]) != objective(all[1]) || all[0].terms.migrations <= all[1].terms.migrations) continue;
      ++ties;
      REQUIRE(walk(true)[0].terms.migrations == all[1].terms.migrations);
    }
    CHECK(happened(ties, 0));
  }
}

TEST_CASE("batch: what is kept stays, ids go on rising, and walks start from what was found") {
  over_layers(60, 33000, [](Backend& backend, Random& random, const Layers& layers) {
    BatchRig rig(backend);
    rig.fill(layers);
    // By layer: the ids that are kept and their placements, the incumbent's among them while there is one.
    std::vector<std::vector<Found>> kept(static_cast<size_t>(layers.count));
    Placements placements(kept.size());
    for (size_t n = 0; n < kept.size() && layers.has_incumbent(); ++n) {
      const LayerRig& layer = *layers.rigs[n];
      kept[n].push_back({0, layer.evaluate(layer.incumbent().start, layer.view().held)});
      placements[n].push_back(layer.incumbent().start);
    }
    std::vector<int32_t> last(kept.size(), layers.has_incumbent() ? 0 : -1);
    for (int phase = 0; phase < 4; ++phase) {
      Orders orders = draw_orders(random, layers, 8 * random.between(1, 4));
      std::vector<std::vector<const int32_t*>> starts(orders.size());
      for (size_t n = 0; n < orders.size(); ++n) {
        for (WalkOrder& order : orders[n]) {
          const bool construct = kept[n].empty() || random.chance(0.2);
          const size_t from = construct ? 0 : static_cast<size_t>(random.below(static_cast<int32_t>(kept[n].size())));
          order.start = construct ? WalkOrder::kConstruct : kept[n][from].id;
          if (construct) order.frontier = 0;
          starts[n].push_back(construct ? nullptr : placements[n][from].data());
        }
      }
      const Placements expected = expected_of(layers, orders, starts);
      rig.batch().begin_walks(orders);
      rig.walk(orders[0][0].plan.total_steps, count_walks(orders));
      const auto found = rig.collect(false);
      REQUIRE(rig.fetch(found) == expected);
      std::vector<std::vector<int32_t>> ids(kept.size());
      for (size_t n = 0; n < kept.size(); ++n) {
        check_ids_rise(found[n], last[n]);
        if (!found[n].empty()) last[n] = found[n].back().id;
        kept[n].insert(kept[n].end(), found[n].begin(), found[n].end());
        placements[n].insert(placements[n].end(), expected[n].begin(), expected[n].end());
        for (size_t i = kept[n].size(); i-- > 0;) {  // drops about half; something always stays
          if (kept[n].size() == 1 || random.chance(0.5)) continue;
          kept[n].erase(kept[n].begin() + static_cast<int64_t>(i));
          placements[n].erase(placements[n].begin() + static_cast<int64_t>(i));
        }
        for (const Found& f : kept[n]) ids[n].push_back(f.id);
      }
      rig.batch().keep(ids);
      // The incumbent may be gone by now, so every layer asks for an id of its own.
      size_t most = 0;
      for (const auto& layer : kept) most = std::max(most, layer.size());
      for (size_t i = 0; i < most; ++i) {
        std::vector<int32_t> wanted;
        for (const auto& layer : kept) wanted.push_back(layer[std::min(i, layer.size() - 1)].id);
        rig.batch().fetch(wanted);
        for (size_t n = 0; n < kept.size(); ++n) {
          REQUIRE(rig.placement(static_cast<int32_t>(n)) == placements[n][std::min(i, placements[n].size() - 1)]);
        }
      }
    }
  });
}

TEST_CASE("batch: bounds are those of the portable kernels at every price asked for, before walks and after") {
  over_layers(80, 34000, [](Backend& backend, Random& random, const Layers& layers) {
    BatchRig rig(backend);
    rig.fill(layers);
    const int32_t iterations = random.below(12);
    std::vector<int64_t> prices = {layers.q.weights.migration};
    if (random.chance(0.6)) prices.push_back(prices[0] + static_cast<int64_t>(random.any_magnitude(40)));
    if (random.chance(0.3)) prices.push_back(prices[0] + static_cast<int64_t>(random.any_magnitude(20)));
    rig.batch().prove(prices, iterations);
    if (random.chance(0.5)) {
      const Orders orders = draw_orders(random, layers, 16);
      rig.batch().begin_walks(orders);
      rig.walk(16, count_walks(orders));
      rig.fetch(rig.collect(true));
    }
    for (size_t which = prices.size(); which-- > 0;) {
      for (int32_t n = 0; n < layers.count; ++n) {
        const int64_t expected = layers.rigs[static_cast<size_t>(n)]->bound(layers.q.weights, prices[which], iterations);
        REQUIRE(rig.batch().bound(n, which) == expected);
      }
    }
    rig.batch().prove({prices.back()}, iterations + 1);  // asked anew
    REQUIRE(rig.batch().bound(0, 0) == layers.rigs[0]->bound(layers.q.weights, prices.back(), iterations + 1));
  });
}

TEST_CASE("batch: evaluation prices what was found as it was found, and faults of candidates are told by slot") {
  int32_t faults = 0, sound = 0;
  over_layers(80, 35000, [&](Backend& backend, Random& random, const Layers& layers) {
    BatchRig rig(backend, random.between(1, 3));
    rig.fill(layers);
    const Orders orders = draw_orders(random, layers, 8);
    rig.batch().begin_walks(orders);
    rig.walk(8, count_walks(orders));
    const auto found = rig.collect(false);
    const Placements placements = rig.fetch(found);

    // Candidates over all layers of the problem, of which the batch has some: each is something found, or drawn and spoiled.
    const Quantised& q = layers.q;
    const size_t width = static_cast<size_t>(q.all_gpus) * static_cast<size_t>(q.slots), count = 5;
    const size_t batch = static_cast<size_t>(layers.count);
    std::vector<int32_t> candidates(count * static_cast<size_t>(q.layers) * width, -77);
    std::vector<spec::FineTerms> expected(count * batch);
    std::vector<int32_t> fault(count * batch, -1);
    for (size_t c = 0; c < count; ++c) {
      for (size_t n = 0; n < batch; ++n) {
        const LayerRig& layer = *layers.rigs[n];
        std::vector<int32_t> candidate;
        if (!found[n].empty() && random.chance(0.5)) {
          const size_t from = static_cast<size_t>(random.below(static_cast<int32_t>(found[n].size())));
          candidate = over_all_gpus(q, placements[n][from].data());
          expected[c * batch + n] = found[n][from].terms;
        } else {
          candidate = draw_placement(random, layers.in(), q);
          if (random.chance(0.5)) candidate[static_cast<size_t>(random.below(static_cast<int32_t>(width)))] = random.between(-2, q.experts);
          fault[c * batch + n] = layer.read_candidate(q, candidate).bad_slot;
          if (fault[c * batch + n] < 0) expected[c * batch + n] = layer.evaluate(live_part(q, candidate.data()), layer.view().held);
        }
        (fault[c * batch + n] < 0 ? sound : faults) += 1;
        const size_t row = c * static_cast<size_t>(q.layers) + static_cast<size_t>(layers.first) + n;
        std::copy(candidate.begin(), candidate.end(), candidates.begin() + static_cast<int64_t>(row * width));
      }
    }
    std::vector<spec::FineTerms> terms(count * batch);
    std::vector<int32_t> bad_slot(count * batch, -5);
    REQUIRE(rig.batch().evaluate(candidates.data(), static_cast<int64_t>(count), q.layers, rig.threads(), nullptr,
                                 {terms.data(), bad_slot.data()}));
    REQUIRE(bad_slot == fault);
    for (size_t i = 0; i < terms.size(); ++i) {
      if (fault[i] >= 0) continue;
      REQUIRE(terms[i].load_max == expected[i].load_max);
      REQUIRE(terms[i].comm_max == expected[i].comm_max);
      REQUIRE(terms[i].comm_total == expected[i].comm_total);
      REQUIRE(terms[i].migrations == expected[i].migrations);
    }
    const std::atomic<bool> cancel{true};
    REQUIRE_FALSE(rig.batch().evaluate(candidates.data(), static_cast<int64_t>(count), q.layers, rig.threads(), &cancel,
                                       {terms.data(), bad_slot.data()}));
    REQUIRE(rig.batch().evaluate(candidates.data(), 0, q.layers, rig.threads(), nullptr, {terms.data(), bad_slot.data()}));
  });
  CHECK(happened(faults, 50));
  CHECK(happened(sound, 100));
}

TEST_CASE("batch: filled again with another problem, it is as good as new") {
  for (Backend* backend : backends()) {
    BatchRig used(*backend, 2);
    for (uint64_t stream = 0; stream < share_of(60); ++stream) {
      Random random(stream + 36000);
      const Layers layers = draw_layers(random);
      INFO("backend " << backend->name() << ", seed " << base_seed() << ", stream " << stream << ": " << describe(*layers.instance));
      used.fill(layers);
      used.batch().prove({layers.q.weights.migration}, 3);
      const Orders orders = draw_orders(random, layers, 24);
      used.batch().begin_walks(orders);
      used.walk(24, count_walks(orders));
      const auto found = used.collect(false);
      REQUIRE(used.fetch(found) == expected_of(layers, orders));
      for (const auto& layer : found) check_ids_rise(layer, layers.has_incumbent() ? 0 : -1);
      for (int32_t n = 0; n < layers.count; ++n) {
        REQUIRE(used.batch().bound(n, 0) == layers.rigs[static_cast<size_t>(n)]->bound(layers.q.weights, layers.q.weights.migration, 3));
      }
    }
  }
}

TEST_CASE("batch: a cancelled walk says so, and the batch can be filled again") {
  over_layers(10, 37000, [](Backend& backend, Random& random, const Layers& layers) {
    BatchRig rig(backend, 2);
    const Orders orders = draw_orders(random, layers, 64);
    for (bool at_once : {true, false}) {
      rig.fill(layers);
      rig.batch().begin_walks(orders);
      if (!at_once) rig.walk(16, count_walks(orders));
      const std::atomic<bool> cancel{true};
      REQUIRE_FALSE(rig.batch().walk(64, rig.threads(), &cancel, {}));
    }
    rig.fill(layers);
    rig.batch().begin_walks(orders);
    rig.walk(64, count_walks(orders));
    REQUIRE(rig.fetch(rig.collect(false)) == expected_of(layers, orders));
  });
}
