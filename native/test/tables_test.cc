// From counts and costs to tables: the fine ones are plain sums, the search's are their scaled images, and the scale holds
// whatever placement comes.
#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "../spec/cost.h"
#include "../spec/tables.h"
#include "instance.h"
#include "layer_rig.h"
#include "recount.h"

using namespace gimbal;
using namespace gimbal::spec;
using gimbal::test::base_seed;
using gimbal::test::draw_instance;
using gimbal::test::draw_placement;
using gimbal::test::kernel_sets;
using gimbal::test::LayerRig;
using gimbal::test::live_part;
using gimbal::test::make_pattern;
using gimbal::test::Random;

namespace {

void check_dense_sums(const Quantised& q, const FineLayer& fine, const i64* expert_tokens, const i64* comm) {
  for (i32 e = 0; e < q.experts; ++e) {
    i64 tokens = 0;
    for (i32 s = 0; s < q.sources; ++s) tokens += fine.tokens[s * q.experts + e];
    REQUIRE(expert_tokens[e] == tokens);
    for (i32 g = 0; g < q.gpus; ++g) {
      i64 sum = 0;
      for (i32 s = 0; s < q.sources; ++s) {
        sum += i64{fine.tokens[s * q.experts + e]} * q.comm_cost[static_cast<size_t>(s * q.gpus + g)];
      }
      REQUIRE(comm[i64{g} * q.experts + e] == sum);
    }
  }
}

}  // namespace

TEST_CASE("tables: a pattern of base and exceptions sums to the dense product, whatever the base") {
  for (uint64_t stream = 0; stream < 150; ++stream) {
    Random random(stream + 100);
    const auto instance = draw_instance(random);
    INFO("seed " << base_seed() << ", stream " << stream << ": " << describe(*instance));
    const ProblemInput& in = instance->problem();
    const Quantised q = quantise(in);
    const LayerRig rig(kernels_base(), in, q, 0);
    check_dense_sums(q, rig.tables().fine, rig.tables().expert_tokens.data(), rig.tables().comm_fine.data());
    // A base that no GPU has, one above and one below all of them, and any one GPU's: all the same sums.
    const std::vector<test::ChooseBase> bases = {
        test::most_frequent,
        [](const uint32_t* row, int32_t gpus) { return static_cast<uint32_t>(std::accumulate(row, row + gpus, uint64_t{0}) / static_cast<uint64_t>(gpus)); },
        [](const uint32_t*, int32_t) { return uint32_t{0}; },
        [](const uint32_t* row, int32_t gpus) { return *std::max_element(row, row + gpus) + 1; },
        [&](const uint32_t* row, int32_t gpus) { return row[random.below(gpus)]; },
    };
    for (const auto& base : bases) {
      const CommPattern pattern = make_pattern(q, base);
      std::vector<i64> expert_tokens(static_cast<size_t>(q.experts), -1), scratch(static_cast<size_t>(q.experts), -1);
      std::vector<i64> comm(static_cast<size_t>(q.gpus) * static_cast<size_t>(q.experts), -1);
      FineLayer fine = rig.tables().fine;
      fill_fine_tables(fine, pattern.view(), expert_tokens.data(), comm.data(), scratch.data());
      REQUIRE(expert_tokens == rig.tables().expert_tokens);
      REQUIRE(comm == rig.tables().comm_fine);
    }
  }
}

TEST_CASE("tables: sum_of_greatest is that of a sorted copy") {
  Random random(7);
  INFO("seed " << base_seed());
  for (int n = 0; n < 4000; ++n) {
    const i32 count = random.between(1, 60);
    const i32 slots = random.between(0, 70);
    const int32_t bits = random.between(0, 40);  // few bits: many equals
    std::vector<i64> values(static_cast<size_t>(count));
    for (i64& v : values) v = static_cast<i64>(random.any_magnitude(bits));
    if (random.chance(0.2)) std::sort(values.begin(), values.end());
    std::vector<i64> sorted = values;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    const i64 expected = std::accumulate(sorted.begin(), sorted.begin() + std::min(count, slots), i64{0});
    CAPTURE(count);
    CAPTURE(slots);
    REQUIRE(sum_of_greatest(values.data(), count, slots) == expected);
    std::sort(values.begin(), values.end(), std::greater<>());
    REQUIRE(values == sorted);  // reordered, nothing lost
  }
}

TEST_CASE("tables: worst_case bounds every placement, and the scale keeps it in range") {
  for (uint64_t stream = 0; stream < 150; ++stream) {
    Random random(stream + 300);
    const auto instance = draw_instance(random);
    INFO("seed " << base_seed() << ", stream " << stream << ": " << describe(*instance));
    const ProblemInput& in = instance->problem();
    const Quantised q = quantise(in);
    const LayerRig rig(kernels_base(), in, q, 0);
    std::vector<i64> scratch(2 * static_cast<size_t>(q.experts));
    const i64 worst = worst_case(rig.tables().fine, q.weights, scratch.data(), scratch.data() + q.experts);
    const SearchScale& scale = rig.tables().scale;
    REQUIRE((worst >> scale.shift) < (i64{1} << kSearchBits));
    if (scale.shift > 0) REQUIRE((worst >> (scale.shift - 1)) >= (i64{1} << kSearchBits));  // no coarser than it must be
    for (int n = 0; n < 30; ++n) {
      std::vector<int32_t> placement = live_part(q, draw_placement(random, in, q).data());
      if (n == 0) {  // the likeliest offender: the heaviest experts together on the first GPUs
        std::stable_sort(placement.begin(), placement.end(), [&](int32_t a, int32_t b) {
          return rig.tables().expert_tokens[static_cast<size_t>(a)] > rig.tables().expert_tokens[static_cast<size_t>(b)];
        });
      }
      // Up to one unit for each expert's weighted terms, which the bound rounds down one by one.
      REQUIRE(fine_objective(q.weights, rig.evaluate(placement)) <= worst + 2 * q.slots + q.experts);
      const test::Recount r = test::recount_placement(rig.view(), placement);
      REQUIRE(r.value - r.new_slots * rig.view().price < (i64{1} << kSearchBits));
    }
  }
}

TEST_CASE("tables: the search's objective is the fine one up to rounding") {
  for (uint64_t stream = 0; stream < 150; ++stream) {
    Random random(stream + 500);
    const auto instance = draw_instance(random);
    INFO("seed " << base_seed() << ", stream " << stream << ": " << describe(*instance));
    const ProblemInput& in = instance->problem();
    const Quantised q = quantise(in);
    for (int32_t layer = 0; layer < q.layers; ++layer) {
      const LayerRig rig(kernels_base(), in, q, layer);
      const std::vector<int32_t> placement = live_part(q, draw_placement(random, in, q).data());
      const test::Recount r = test::recount_placement(rig.view(), placement);
      const i64 fine = fine_objective(q.weights, rig.evaluate(placement));
      const i64 coarse = (r.value - r.new_slots * rig.view().price) << rig.tables().scale.shift;
      // Each slot's load and communication, per source under `nearest`, is rounded down by at most a few units; each GPU's
      // sums count, and all of them in the total.
      const i64 cells = i64{q.gpus} * q.slots * (q.nearest ? 3 * q.sources : 2);
      const i64 rounding = (cells * 3 + 8) << rig.tables().scale.shift;
      REQUIRE(coarse <= fine + (i64{8} << rig.tables().scale.shift) + 8);
      REQUIRE(coarse >= fine - rounding - 8);
    }
  }
}

TEST_CASE("tables: one copy by expert and one by GPU, padding zero") {
  for (uint64_t stream = 0; stream < 60; ++stream) {
    Random random(stream + 700);
    const auto instance = draw_instance(random);
    const ProblemInput& in = instance->problem();
    const Quantised q = quantise(in);
    const LayerRig rig(kernels_base(), in, q, 0);
    const LayerView& v = rig.view();
    for (i32 e = 0; e < v.experts; ++e) {
      for (i32 g = 0; g < v.stride; ++g) {
        const i32 comm = v.comm[e * v.stride + g];
        REQUIRE(comm == (g < v.gpus ? v.comm_t[g * v.experts + e] : 0));
        if (v.uniform_compute) continue;
        REQUIRE(v.load[e * v.stride + g] == (g < v.gpus ? v.load_t[g * v.experts + e] : 0));
      }
    }
  }
}

TEST_CASE("tables: ratios and prices") {
  CHECK(ratio_q31(0, 0) == 0);
  CHECK(ratio_q31(5, 5) == kOneQ31);
  CHECK(ratio_q31(1, 3) == kOneQ31 / 3);
  CHECK(to_search_price(i64{1} << 62, 0) == (1 << kSearchBits));
  CHECK(to_search_price(1000, 3) == 125);
  CHECK(to_search(1000, kOneQ31, 3) == 125);
  CHECK(to_search(1000, kOneQ31 / 2, 2) == 125);
}

TEST_CASE("cost: a hand-worked layer") {
  // 2 sources, 3 experts, 2 GPUs x 2 slots; costs whole, weights 1 and a half.
  const std::vector<u32> tokens = {10, 20, 30, 4, 8, 2};
  const std::vector<u32> compute = {1, 2}, comm_cost = {0, 5, 7, 0};
  const std::vector<i64> expert_tokens = {14, 28, 32};
  const std::vector<i64> comm = {28, 56, 14, 50, 100, 150};  // [gpus][experts]
  FineLayer v;
  v.experts = 3;
  v.gpus = 2;
  v.slots = 2;
  v.sources = 2;
  v.tokens = tokens.data();
  v.compute_cost = compute.data();
  v.comm_cost = comm_cost.data();
  v.expert_tokens = expert_tokens.data();
  v.comm = comm.data();
  const std::vector<i32> placement = {0, 1, 2, 0};
  std::vector<i32> ids(8);
  std::vector<i64> load(2), sent(2);
  const FineTerms even = fine_terms_even(v, placement.data(), ids.data(), load.data(), sent.data());
  CHECK(load == std::vector<i64>{7 + 28, 14 + 64});
  CHECK(sent == std::vector<i64>{14 + 56, 25 + 150});
  CHECK(even.load_max == 78);
  CHECK(even.comm_max == 175);
  CHECK(even.comm_total == 245);
  FineWeights w;
  w.load = kOneQ31;
  w.comm_max = kOneQ31 / 2;
  w.comm_total = 0;
  w.migration = 40;
  FineTerms terms = even;
  terms.migrations = 2;
  CHECK(fine_objective(w, terms) == 78 + 87 + 80);
  // nearest: source 0 finds expert 0 on GPU 0, source 1 on GPU 1.
  std::vector<i32> first(4), hosts(4);
  const FineTerms near = fine_terms_nearest(v, placement.data(), first.data(), hosts.data(), load.data(), sent.data());
  CHECK(load == std::vector<i64>{10 + 28, 8 + 64});
  CHECK(sent == std::vector<i64>{56, 150});
  CHECK(near.load_max == 72);
  CHECK(near.comm_total == 206);
}
