// The walk keeps sums, counts and prices by increments. Whatever it did, they must be those of its placement; and a walk is
// a function of its start, its key and its steps alone.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <memory>

#include "../spec/random.h"
#include "../spec/search.h"
#include "instance.h"
#include "layer_rig.h"
#include "recount.h"

using namespace gimbal;
using namespace gimbal::test;

namespace {

// A random layer with everything that a walk over it needs.
struct Case {
  std::unique_ptr<Instance> instance;
  Quantised q;
  std::unique_ptr<LayerRig> rig;
  WalkOptions options;
};

Case draw_case(uint64_t stream, const CpuKernels& kernels) {
  Random random(stream);
  Case c;
  c.instance = draw_instance(random);
  const ProblemInput& in = c.instance->problem();
  c.q = quantise(in);
  const int32_t layer = random.below(in.layers);
  c.rig = std::make_unique<LayerRig>(kernels, in, c.q, layer);
  c.options.plan.walker = random.below(8);
  c.options.plan.temper = spec::walker_temper(c.options.plan.walker);
  c.options.plan.key = spec::stream_key(random.bits(), layer, c.options.plan.walker);
  c.options.plan.total_steps = 8 * random.between(1, 20);
  if (c.rig->has_incumbent()) {
    if (random.chance(0.7)) c.options.start = c.rig->incumbent().start.data();
    if (random.chance(0.5)) {
      c.options.plan.temper = spec::budget_temper();
      c.options.frontier = random.between(1, c.q.gpus * c.q.slots + 1);
      c.options.plan.dearest = static_cast<int32_t>(random.any_magnitude(22));
      c.options.plan.cheapest = static_cast<int32_t>(random.any_magnitude(12));
    }
  }
  return c;
}

void check_state(const spec::LayerView& v, const spec::Walker& w) {
  REQUIRE(broken_constraints(v, w.expert) == std::vector<std::string>{});
  const Recount r = recount(v, w.expert);
  int64_t price = -1;  // the price at hand may exceed the view's; it must be the same everywhere
  for (int32_t h = 0; h < v.gpus; ++h) {
    const size_t gpu = static_cast<size_t>(h);
    REQUIRE(w.gpu_load[h] == r.gpu_load[gpu]);
    REQUIRE(w.gpu_comm[h] == r.gpu_comm[gpu]);
    REQUIRE(w.gpu_linear[h] == r.gpu_linear[gpu]);
    REQUIRE(w.gpu_new[h] == r.gpu_new[gpu]);
    for (int32_t k = 0; k < v.slots; ++k) {
      const size_t j = static_cast<size_t>(k * v.stride + h);
      const size_t pair = static_cast<size_t>(w.expert[j] * v.stride + h);
      REQUIRE(w.load[j] == r.load[j]);
      REQUIRE(w.comm[j] == r.comm[j]);
      const int64_t own_price = w.linear[j] - r.part[j];
      const bool fresh = v.held != nullptr && v.held[pair] == 0;
      if (fresh && price < 0) price = own_price;
      REQUIRE(own_price == (fresh ? price : 0));
    }
  }
  for (int32_t e = 0; e < v.experts; ++e) {
    REQUIRE(w.replicas[e] == r.replicas[static_cast<size_t>(e)]);
    for (int32_t h = 0; h < v.gpus; ++h) {
      REQUIRE(w.copies[e * v.stride + h] == r.copies[static_cast<size_t>(e * v.stride + h)]);
      if (w.replicas[e] == 1 && w.copies[e * v.stride + h] == 1) REQUIRE(w.home[e] == h);
    }
  }
  for (int32_t h = v.gpus; h < v.stride; ++h) {  // the padding takes no part
    REQUIRE(w.gpu_load[h] == 0);
    REQUIRE(w.gpu_comm[h] == 0);
    for (int32_t k = 0; k < v.slots; ++k) REQUIRE(w.share[k * v.stride + h] == 0);
  }
}

void check_best(const Case& c, const WalkRig& walk) {
  const spec::LayerView& v = c.rig->view();
  std::vector<int32_t> best(static_cast<size_t>(v.slots * v.stride), 0);
  for (int32_t h = 0; h < v.gpus; ++h) {
    for (int32_t k = 0; k < v.slots; ++k) best[static_cast<size_t>(k * v.stride + h)] = walk.best()[static_cast<size_t>(h * v.slots + k)];
  }
  REQUIRE(broken_constraints(v, best.data()) == std::vector<std::string>{});
  // With a budget the price moves along the walk, and the best is by whatever price it was met at.
  if (c.options.frontier == 0) REQUIRE(walk.progress().best_value == recount(v, best.data()).value);
}

void check_frontier(const spec::LayerView& v, const spec::Walker& w) {
  for (int32_t m = 0; m < w.frontier; ++m) {
    if (w.frontier_value[m] == INT64_MAX) continue;
    const int32_t* expert = w.frontier_expert + int64_t{m} * v.slots * v.stride;
    REQUIRE(broken_constraints(v, expert) == std::vector<std::string>{});
    const Recount r = recount(v, expert);
    REQUIRE(r.new_slots == m);
    REQUIRE(w.frontier_value[m] == r.value);
  }
}

constexpr uint64_t kCases = 400;

}  // namespace

TEST_CASE("search: the incremental state is the recount of its placement after any number of steps") {
  int32_t moved = 0, with_frontier = 0, nearest = 0;
  for (uint64_t stream = 0; stream < kCases; ++stream) {
    const Case c = draw_case(stream, kernels_base());
    INFO("seed " << base_seed() << ", stream " << stream << ": " << describe(*c.instance));
    WalkRig walk(*c.rig, c.options);
    const spec::LayerView& v = c.rig->view();
    Random random(stream + 1000);
    walk.walk(0);  // the start alone
    const std::vector<int32_t> first = walk.best();
    for (int64_t until = 0; until < c.options.plan.total_steps;) {
      check_state(v, walk.state());
      check_best(c, walk);
      check_frontier(v, walk.state());
      until += random.between(1, 24);
      walk.walk(until);
    }
    check_state(v, walk.state());
    check_best(c, walk);
    check_frontier(v, walk.state());
    moved += walk.best() != first;
    with_frontier += c.options.frontier > 0;
    nearest += v.nearest;
  }
  // The suite must not pass because nothing happened.
  CHECK(moved > static_cast<int32_t>(kCases) / 4);
  CHECK(with_frontier > static_cast<int32_t>(kCases) / 12);
  CHECK(nearest > static_cast<int32_t>(kCases) / 6);
}

TEST_CASE("search: a walk in pieces is the walk") {
  for (uint64_t stream = 0; stream < kCases; ++stream) {
    const Case c = draw_case(stream, kernels_base());
    INFO("seed " << base_seed() << ", stream " << stream << ": " << describe(*c.instance));
    WalkRig whole(*c.rig, c.options);
    whole.walk(c.options.plan.total_steps);
    Random random(stream + 2000);
    for (int32_t largest : {1, 3, 8}) {  // in temperatures: a walk pauses between two of them
      WalkRig pieces(*c.rig, c.options);
      for (int64_t until = 0; until < c.options.plan.total_steps;) {
        pieces.walk(until += spec::kStepsPerTemperature * random.between(1, largest));
      }
      REQUIRE(pieces.best() == whole.best());
      REQUIRE(pieces.state_words() == whole.state_words());
      REQUIRE(pieces.frontier_words() == whole.frontier_words());
    }
  }
}

TEST_CASE("search: what the memory held before does not show") {
  for (uint64_t stream = 0; stream < kCases; ++stream) {
    Case c = draw_case(stream, kernels_base());
    INFO("seed " << base_seed() << ", stream " << stream << ": " << describe(*c.instance));
    WalkRig one(*c.rig, c.options);
    c.options.poison = 0x01010101;
    WalkRig other(*c.rig, c.options);
    one.walk(c.options.plan.total_steps);
    other.walk(c.options.plan.total_steps);
    REQUIRE(one.best() == other.best());
    REQUIRE(one.state_words() == other.state_words());
    REQUIRE(one.frontier_words() == other.frontier_words());
  }
}

TEST_CASE("search: the best never gets worse, and is never worse than the start") {
  for (uint64_t stream = 0; stream < 100; ++stream) {
    Case c = draw_case(stream, kernels_base());
    c.options.frontier = 0;
    INFO("seed " << base_seed() << ", stream " << stream << ": " << describe(*c.instance));
    WalkRig walk(*c.rig, c.options);
    walk.walk(0);
    int64_t last = walk.progress().best_value;
    if (c.options.start != nullptr) {
      const std::vector<int32_t>& start = c.rig->incumbent().start;
      REQUIRE(walk.best() == start);
    }
    for (int64_t until = 16; until <= c.options.plan.total_steps; until += 16) {
      walk.walk(until);
      REQUIRE(walk.progress().best_value <= last);
      last = walk.progress().best_value;
    }
  }
}

TEST_CASE("search: another key walks another way, another walker starts another way") {
  int32_t other_ways = 0, other_starts = 0, tried = 0;
  for (uint64_t stream = 0; stream < 60; ++stream) {
    Case c = draw_case(stream, kernels_base());
    if (c.q.gpus < 4 || c.q.slots < 2) continue;
    ++tried;
    c.options.frontier = 0;
    c.options.start = nullptr;
    c.options.plan.walker = 4;  // a jittered start, so that the key shows there too
    WalkRig one(*c.rig, c.options);
    c.options.plan.key ^= 1;
    WalkRig other(*c.rig, c.options);
    one.walk(0);
    other.walk(0);
    other_starts += one.best() != other.best();
    one.walk(32);
    other.walk(32);
    other_ways += one.state_words() != other.state_words();
  }
  CHECK(tried > 20);
  CHECK(other_ways > tried / 2);
  CHECK(other_starts > tried / 4);
}

TEST_CASE("search: what a walk leaves behind has a piece of memory of its own") {
  for (uint64_t stream = 0; stream < 60; ++stream) {
    const Case c = draw_case(stream, kernels_base());
    const spec::LayerView& v = c.rig->view();
    INFO("seed " << base_seed() << ", stream " << stream << ": " << describe(*c.instance));
    spec::Walker w{};
    const int32_t frontier = c.options.frontier;
    const spec::WalkerBytes bytes = spec::lay_out_walker(v, frontier, nullptr, nullptr, &w);
    REQUIRE(w.expert == nullptr);  // counted, not placed
    REQUIRE(w.best_expert == nullptr);
    std::vector<char> work(bytes.work + 64), kept(bytes.kept + 64);
    const auto aligned = [](std::vector<char>& piece) { return piece.data() + (64 - reinterpret_cast<uintptr_t>(piece.data()) % 64) % 64; };
    const spec::WalkerBytes placed = spec::lay_out_walker(v, frontier, aligned(work), aligned(kept), &w);
    REQUIRE(placed.work == bytes.work);
    REQUIRE(placed.kept == bytes.kept);
    const size_t cells = static_cast<size_t>(v.slots) * static_cast<size_t>(v.stride);
    const auto lies_in = [&](std::vector<char>& piece, uint64_t size, const void* array, size_t length) {
      const char* const begin = static_cast<const char*>(array);
      return begin >= aligned(piece) && begin + length <= aligned(piece) + size && reinterpret_cast<uintptr_t>(begin) % 64 == 0;
    };
    REQUIRE(lies_in(work, bytes.work, w.expert, cells * sizeof(int32_t)));
    REQUIRE(lies_in(work, bytes.work, w.copies, static_cast<size_t>(v.experts) * static_cast<size_t>(v.stride)));
    REQUIRE(lies_in(work, bytes.work, w.home, static_cast<size_t>(v.experts) * sizeof(int32_t)));
    REQUIRE(lies_in(kept, bytes.kept, w.best_expert, cells * sizeof(int32_t)));
    REQUIRE(lies_in(kept, bytes.kept, w.frontier_value, static_cast<size_t>(frontier) * sizeof(int64_t)));
    REQUIRE(lies_in(kept, bytes.kept, w.frontier_expert, static_cast<size_t>(frontier) * cells * sizeof(int32_t)));
    REQUIRE(w.frontier == frontier);
  }
}

TEST_CASE("search: a cancelled walk says so") {
  const Case c = draw_case(3, kernels_base());
  std::atomic<bool> cancel{true};
  WalkRig walk(*c.rig, c.options);
  CHECK_FALSE(walk.walk(c.options.plan.total_steps, &cancel));
  WalkRig other(*c.rig, c.options);
  cancel = false;
  CHECK(other.walk(c.options.plan.total_steps, &cancel));
}

TEST_CASE("search: a round is whole temperatures and enough steps for every GPU") {
  for (int32_t gpus = 1; gpus <= 600; ++gpus) {
    const int32_t steps = spec::steps_per_round(gpus);
    REQUIRE(steps % spec::kStepsPerTemperature == 0);
    REQUIRE(steps >= gpus);
    REQUIRE(steps >= spec::kLeastStepsPerRound);
    REQUIRE(steps <= 4 * std::max(gpus, spec::kLeastStepsPerRound));
    REQUIRE(steps <= spec::steps_per_round(gpus + 1));
  }
}

TEST_CASE("search: the extra price falls from the dearest to the cheapest, and no further") {
  Random random(30);
  INFO("seed " << base_seed());
  for (int n = 0; n < 500; ++n) {
    const int32_t dearest = static_cast<int32_t>(random.any_magnitude(spec::kSearchBits));
    const int32_t cheapest = static_cast<int32_t>(random.any_magnitude(spec::kSearchBits));
    const int64_t total = random.between(1, 5000);
    CAPTURE(dearest);
    CAPTURE(cheapest);
    CAPTURE(total);
    int32_t last = INT32_MAX;
    for (int64_t step = 0; step <= total; step += std::max<int64_t>(1, total / 50)) {
      const int32_t price = spec::extra_price_at(dearest, cheapest, step, total);
      REQUIRE(price >= std::min(dearest, cheapest));
      REQUIRE(price <= std::max(dearest, cheapest));
      REQUIRE(price <= last);
      last = price;
    }
    if (dearest > cheapest) REQUIRE(spec::extra_price_at(dearest, cheapest, 0, total) == dearest);
    REQUIRE(spec::extra_price_at(dearest, cheapest, total, total) <= std::max<int64_t>(cheapest, 1) * 1.1 + 1);
  }
}
