// Every instruction set, and the Team that evaluates out of order, must give the same integers: tables, walks, terms, readings,
// bounds.
#include <doctest/doctest.h>

#include <memory>

#include "../solver/registry.h"
#include "../spec/random.h"
#include "instance.h"
#include "layer_rig.h"

using namespace gimbal;
using namespace gimbal::test;

namespace {

// The walks that every set of kernels runs on one layer: a fresh one, one from the incumbent, and one with a budget.
std::vector<WalkOptions> walks_of(const LayerRig& rig, int64_t steps, uint64_t seed) {
  std::vector<WalkOptions> walks(2);
  for (size_t n = 0; n < walks.size(); ++n) {
    walks[n].plan.walker = static_cast<int32_t>(n) * 5;  // the second jitters its weights
    walks[n].plan.temper = spec::walker_temper(walks[n].plan.walker);
    walks[n].plan.key = spec::stream_key(seed, 0, walks[n].plan.walker);
    walks[n].plan.total_steps = steps;
  }
  if (rig.has_incumbent()) {
    walks[0].start = rig.incumbent().start.data();
    walks.push_back(walks[0]);
    walks.back().plan.temper = spec::budget_temper();
    walks.back().frontier = 9;
    walks.back().plan.dearest = 1 << 18;
    walks.back().plan.cheapest = 1 << 6;
  }
  return walks;
}

// Everything that the kernels say about one layer.
struct Answers {
  std::vector<int64_t> expert_tokens, comm_fine;
  std::vector<int32_t> tables;
  int32_t shift = 0;
  std::vector<std::vector<int32_t>> best;
  std::vector<std::vector<int64_t>> states;
  std::vector<int64_t> terms;
  std::vector<int64_t> bounds;
  std::vector<std::vector<int32_t>> readings;  // of candidates: the slot at fault, then the live part
};

// A placement over all GPUs that is right, or has up to three slots spoiled.
std::vector<int32_t> draw_candidate(Random& random, const ProblemInput& in, const Quantised& q) {
  std::vector<int32_t> candidate = draw_placement(random, in, q);
  for (int32_t n = random.below(4); n > 0; --n) {
    int32_t& slot = candidate[static_cast<size_t>(random.below(static_cast<int32_t>(candidate.size())))];
    slot = random.chance(0.5) ? random.between(-2, q.experts) : 0;
  }
  return candidate;
}

Answers ask(const CpuKernels& kernels, const ProblemInput& in, const Quantised& q, int64_t steps, uint64_t seed) {
  Answers a;
  for (int32_t layer = 0; layer < q.layers; ++layer) {
    const LayerRig rig(kernels, in, q, layer);
    const auto append = [](auto* to, const auto& from) { to->insert(to->end(), from.begin(), from.end()); };
    append(&a.expert_tokens, rig.tables().expert_tokens);
    append(&a.comm_fine, rig.tables().comm_fine);
    append(&a.tables, rig.search_tables());
    a.shift = rig.tables().scale.shift;
    for (const WalkOptions& options : walks_of(rig, steps, seed)) {
      WalkRig walk(rig, options);
      walk.walk(steps);
      a.best.push_back(walk.best());
      a.states.push_back(walk.state_words());
      a.states.push_back(walk.frontier_words());
      const spec::FineTerms t = rig.evaluate(walk.best(), rig.view().held);
      append(&a.terms, std::vector<int64_t>{t.load_max, t.comm_max, t.comm_total, t.migrations});
    }
    Random random(seed + 7000);
    for (int n = 0; n < 4; ++n) {
      const CandidateReading reading = rig.read_candidate(q, draw_candidate(random, in, q));
      a.readings.push_back({reading.bad_slot});
      if (reading.bad_slot < 0) append(&a.readings.back(), reading.live);
    }
    for (int32_t iterations : {0, 1, 12}) {
      a.bounds.push_back(rig.bound(q.weights, q.weights.migration, iterations));
      a.bounds.push_back(rig.bound(q.weights, q.weights.migration + (int64_t{1} << q.weights.load % 20), iterations));
    }
  }
  return a;
}

void check_all_agree(const ProblemInput& in, int64_t steps, uint64_t seed) {
  const Quantised q = quantise(in);
  const Answers expected = ask(kernels_base(), in, q, steps, seed);
  for (const KernelSet& set : kernel_sets()) {
    INFO("kernels: " << set.name);
    const Answers a = ask(*set.kernels, in, q, steps, seed);
    REQUIRE(a.expert_tokens == expected.expert_tokens);
    REQUIRE(a.comm_fine == expected.comm_fine);
    REQUIRE(a.shift == expected.shift);
    REQUIRE(a.tables == expected.tables);
    REQUIRE(a.best == expected.best);
    REQUIRE(a.states == expected.states);
    REQUIRE(a.terms == expected.terms);
    REQUIRE(a.bounds == expected.bounds);
    REQUIRE(a.readings == expected.readings);
  }
}

// A problem of a given shape where nothing is random but what the caller changes.
std::unique_ptr<Instance> plain(int32_t experts, int32_t gpus, int32_t slots, uint32_t tokens) {
  auto out = std::make_unique<Instance>();
  ProblemInput& in = out->input;
  in.layers = 1;
  in.sources = gpus;
  in.experts = experts;
  in.gpus = gpus;
  in.slots_per_gpu = slots;
  out->tokens.assign(static_cast<size_t>(gpus) * static_cast<size_t>(experts), tokens);
  in.compute_cost_ns.assign(static_cast<size_t>(gpus), 100.0);
  for (int32_t s = 0; s < gpus; ++s) {
    for (int32_t g = 0; g < gpus; ++g) in.comm_cost_ns.push_back(s == g ? 0.0 : s / 4 == g / 4 ? 30.0 : 200.0);
  }
  return out;
}

}  // namespace

TEST_CASE("kernels: which sets this machine runs") {
  std::string names;
  for (const KernelSet& set : kernel_sets()) names += (names.empty() ? "" : ", ") + set.name;
  MESSAGE("kernel sets compared: " << names << "; the CPU backend chose " << cpu_backend().detail());
  CHECK(kernel_sets().size() >= 2);
  for (const KernelSet& set : kernel_sets()) CHECK(set.kernels->name == set.name);
}

TEST_CASE("kernels: all sets agree on random problems") {
  for (uint64_t stream = 0; stream < 90; ++stream) {
    Random random(stream + 5000);
    const auto instance = draw_instance(random);
    INFO("seed " << base_seed() << ", stream " << stream << ": " << describe(*instance));
    check_all_agree(instance->problem(), 64, stream);
  }
}

TEST_CASE("kernels: all sets agree where everything ties") {
  for (ReplicaChoice choice : {ReplicaChoice::kEven, ReplicaChoice::kNearest}) {
    auto instance = plain(12, 6, 3, 500);
    instance->input.replica_choice = choice;
    check_all_agree(instance->problem(), 96, 1);
    std::fill(instance->input.comm_cost_ns.begin(), instance->input.comm_cost_ns.end(), 50.0);
    check_all_agree(instance->problem(), 96, 2);
  }
}

TEST_CASE("kernels: all sets agree on degenerate shapes") {
  const auto check = [](int32_t experts, int32_t gpus, int32_t slots, uint32_t tokens) {
    for (ReplicaChoice choice : {ReplicaChoice::kEven, ReplicaChoice::kNearest}) {
      auto instance = plain(experts, gpus, slots, tokens);
      instance->input.replica_choice = choice;
      Random random(static_cast<uint64_t>(experts * 1000 + gpus));
      if (tokens > 1) {
        for (uint32_t& t : instance->tokens) t = static_cast<uint32_t>(random.below(static_cast<int32_t>(tokens)));
      }
      INFO(describe(*instance));
      check_all_agree(instance->problem(), 64, 3);
    }
  };
  SUBCASE("one GPU") { check(5, 1, 5, 900); }
  SUBCASE("one expert, one slot") { check(1, 1, 1, 900); }
  SUBCASE("one expert on many GPUs") { check(1, 5, 1, 900); }
  SUBCASE("one slot per GPU, no redundancy") { check(7, 7, 1, 900); }
  SUBCASE("every GPU holds every expert") { check(4, 3, 4, 900); }
  SUBCASE("no traffic") { check(10, 4, 3, 0); }
  SUBCASE("one token each") { check(10, 4, 3, 1); }
  SUBCASE("a whole number of vectors") { check(40, 16, 3, 900); }
  SUBCASE("one GPU more than whole vectors") { check(40, 17, 3, 900); }
  SUBCASE("one GPU less than whole vectors") { check(60, 31, 2, 900); }
  SUBCASE("more than the least steps in a round") { check(64, 40, 2, 900); }
}

TEST_CASE("kernels: all sets agree without costs and with dead GPUs") {
  auto free_of_cost = plain(10, 4, 3, 700);
  std::fill(free_of_cost->input.comm_cost_ns.begin(), free_of_cost->input.comm_cost_ns.end(), 0.0);
  std::fill(free_of_cost->input.compute_cost_ns.begin(), free_of_cost->input.compute_cost_ns.end(), 0.0);
  check_all_agree(free_of_cost->problem(), 64, 4);

  auto dead = plain(20, 19, 3, 700);
  Random random(77);
  for (uint32_t& t : dead->tokens) t = static_cast<uint32_t>(random.below(5000));
  dead->input.dead_gpus = {0, 7, 18};
  check_all_agree(dead->problem(), 64, 5);
}

TEST_CASE("kernels: tables do not depend on what memory held before") {
  for (uint64_t stream = 0; stream < 60; ++stream) {
    Random random(stream + 6000);
    const auto instance = draw_instance(random);
    INFO("seed " << base_seed() << ", stream " << stream << ": " << describe(*instance));
    const ProblemInput& in = instance->problem();
    const Quantised q = quantise(in);
    const LayerRig one(kernels_base(), in, q, 0), other(kernels_base(), in, q, 0, 0x01010101);
    REQUIRE(one.search_tables() == other.search_tables());
    REQUIRE(one.bound(q.weights, q.weights.migration, 5) == other.bound(q.weights, q.weights.migration, 5));
  }
}
