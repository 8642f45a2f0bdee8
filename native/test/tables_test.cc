// From counts and costs to tables: the fine ones are plain sums, the search's are their scaled images, and the scale holds
// whatever placement comes.
#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "../model/audit.h"
#include "../spec/cost.h"
#include "../spec/tables.h"
#include "instance.h"
#include "layer_rig.h"
#include "plain_team.h"
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
using gimbal::test::over_teams;
using gimbal::test::PlainTeam;
using gimbal::test::Random;
using gimbal::test::ShuffledTeam;

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
      over_teams(0, [&](auto& team, const std::string& name) {
        INFO(name);
        std::vector<i64> expert_tokens(static_cast<size_t>(q.experts), -1), sums(static_cast<size_t>(q.experts), -1);
        std::vector<i64> comm(static_cast<size_t>(q.gpus) * static_cast<size_t>(q.experts), -1);
        const FineLayer& fine = rig.tables().fine;
        sum_sources(team, fine, pattern.view(), expert_tokens.data(), sums.data());
        for (i32 g = q.gpus - 1; g >= 0; --g) {  // a row stands alone
          fill_comm_row(team, fine, pattern.view(), sums.data(), g, comm.data() + i64{g} * q.experts);
        }
        REQUIRE(expert_tokens == rig.tables().expert_tokens);
        REQUIRE(comm == rig.tables().comm_fine);
      });
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
    PlainTeam plain(0);
    REQUIRE(sum_of_greatest(plain.team, values.data(), count, slots) == expected);
    if (n % 8 != 0) continue;
    ShuffledTeam shuffled(nullptr, nullptr);
    REQUIRE(sum_of_greatest(shuffled, values.data(), count, slots) == expected);
  }
  // Values as large as they come, and a count of slots that ends among equals.
  const i64 most = (i64{1} << 60) - 1;
  const std::vector<i64> large = {most, 0, most, 5, most, 5, 5};
  over_teams(0, [&](auto& team, const std::string& name) {
    INFO(name);
    CHECK(sum_of_greatest(team, large.data(), 7, 2) == 2 * most);
    CHECK(sum_of_greatest(team, large.data(), 7, 5) == 3 * most + 10);
    CHECK(sum_of_greatest(team, large.data(), 7, 7) == 3 * most + 15);
    CHECK(sum_of_greatest(team, large.data(), 7, 0) == 0);
    CHECK(sum_of_greatest(team, large.data() + 1, 1, 1) == 0);
  });
}

TEST_CASE("tables: filled in pieces, each by any Team, they are the tables filled at once") {
  for (uint64_t stream = 0; stream < 120; ++stream) {
    Random random(stream + 900);
    const auto instance = draw_instance(random);
    INFO("seed " << base_seed() << ", stream " << stream << ": " << describe(*instance));
    const ProblemInput& in = instance->problem();
    const Quantised q = quantise(in);
    const LayerRig rig(kernels_base(), in, q, 0);
    const FineLayer& fine = rig.tables().fine;
    const LayerView& v = rig.view();
    const bool uniform = v.uniform_compute;
    const SearchScale& scale = rig.tables().scale;
    const size_t experts = static_cast<size_t>(q.experts), gpus = static_cast<size_t>(q.gpus), stride = static_cast<size_t>(v.stride);
    const size_t sources = q.nearest ? static_cast<size_t>(q.sources) : 0;
    over_teams(0, [&](auto& team, const std::string& name) {
      INFO(name);
      std::vector<i32> load(uniform ? experts : experts * stride, -3), load_t(uniform ? 0 : gpus * experts, -3);
      std::vector<i32> comm(experts * stride, -3), comm_t(gpus * experts, -3);
      std::vector<i32> source_load(sources * experts, -3), source_comm(sources * experts, -3);
      std::vector<u32> compute_factor(q.nearest ? stride : 0, 3), comm_factor(sources * stride, 3), distance(sources * stride, 3);
      const SearchTables t{load.data(),        uniform ? load.data() : load_t.data(), comm.data(),        comm_t.data(), source_load.data(),
                           source_comm.data(), compute_factor.data(),                 comm_factor.data(), distance.data()};
      // Rows in a random order, then the experts in ranges, the last range first.
      std::vector<i32> rows(q.nearest ? sources : gpus);
      std::iota(rows.begin(), rows.end(), 0);
      random.shuffle(&rows);
      if (q.nearest) fill_nearest_factors(team, fine, t);
      for (i32 row : rows) {
        if (q.nearest) fill_nearest_source(team, fine, q.weights, scale, t, row);
        else fill_even_row(team, fine, q.weights, scale, uniform, t, row);
      }
      for (i32 end = q.experts; end > 0;) {
        const i32 begin = std::max(0, end - random.between(1, 7));
        if (q.nearest) fill_nearest_experts(team, fine, t, begin, end);
        else fill_even_experts(team, fine, q.weights, scale, uniform, t, begin, end);
        end = begin;
      }
      const auto same = [](const auto& filled, const auto* expected) { return std::equal(filled.begin(), filled.end(), expected); };
      REQUIRE(same(load, v.load));
      REQUIRE(same(load_t, v.load_t));
      REQUIRE(same(comm, v.comm));
      REQUIRE(same(comm_t, v.comm_t));
      REQUIRE(same(source_load, v.source_load));
      REQUIRE(same(source_comm, v.source_comm));
      REQUIRE(same(compute_factor, v.compute_factor));
      REQUIRE(same(comm_factor, v.comm_factor));
      REQUIRE(same(distance, v.distance));
    });
  }
}

TEST_CASE("tables: the search's entries are the scaled images of the fine ones") {
  for (uint64_t stream = 0; stream < 120; ++stream) {
    Random random(stream + 950);
    const auto instance = draw_instance(random);
    INFO("seed " << base_seed() << ", stream " << stream << ": " << describe(*instance));
    const ProblemInput& in = instance->problem();
    const Quantised q = quantise(in);
    const LayerRig rig(kernels_base(), in, q, 0);
    const LayerView& v = rig.view();
    const int shift = rig.tables().scale.shift;
    const u32 comm_weight = std::max(q.weights.comm_max, q.weights.comm_total);
    const auto image = [shift](i64 fine, u32 weight) {
      return static_cast<i64>(static_cast<unsigned __int128>(fine) * weight >> 31) >> shift;
    };
    // `nearest` sums the images of its sources, each at the dearest GPU and then scaled down: a few units less for each.
    const i64 slack = q.nearest ? 3 * q.sources + ((i64{4} * q.sources) >> shift) + 1 : 0;
    for (i32 e = 0; e < q.experts; ++e) {
      for (i32 g = 0; g < q.gpus; ++g) {
        const i64 tokens = rig.tables().expert_tokens[static_cast<size_t>(e)];
        const i64 load = image(tokens * q.compute_cost[static_cast<size_t>(g)], q.weights.load);
        const i64 comm = image(rig.tables().comm_fine[static_cast<size_t>(g * q.experts + e)], comm_weight);
        const i64 have_load = v.uniform_compute ? v.load[e] : v.load[e * v.stride + g], have_comm = v.comm[e * v.stride + g];
        REQUIRE(have_load <= load);
        REQUIRE(have_load >= load - slack);
        REQUIRE(have_comm <= comm);
        REQUIRE(have_comm >= comm - slack);
      }
    }
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
    i64 worst = -1;
    over_teams(0, [&](auto& team, const std::string& name) {
      INFO(name);
      const i64 here = worst_case(team, rig.tables().fine, q.weights, scratch.data(), scratch.data() + q.experts);
      if (worst >= 0) REQUIRE(here == worst);
      worst = here;
    });
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
  over_teams(0, [&](auto& team, const std::string& name) {
    INFO(name);
    std::vector<i32> ids(3, -5);
    std::vector<i64> load(2, -5), sent(2, -5);
    count_replicas(team, v.experts, v.gpus * v.slots, placement.data(), ids.data());
    const FineTerms even = fine_terms_even(team, v, placement.data(), ids.data(), load.data(), sent.data());
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
    std::vector<i32> first(4, -5), hosts(4, -5);
    const FineTerms near = fine_terms_nearest(team, v, placement.data(), first.data(), hosts.data(), load.data(), sent.data());
    CHECK(load == std::vector<i64>{10 + 28, 8 + 64});
    CHECK(sent == std::vector<i64>{56, 150});
    CHECK(near.load_max == 72);
    CHECK(near.comm_max == 150);
    CHECK(near.comm_total == 206);
    // The incumbent has expert 0 on both GPUs and expert 1 on GPU 0: expert 2 on GPU 1 is new, and on GPU 0 twice but once.
    std::vector<u8> held(3 * 16, 0);
    held[0] = held[1] = held[16] = 1;
    CHECK(count_new_pairs(team, 2, 2, held.data(), placement.data()) == 1);
    CHECK(count_new_pairs(team, 2, 2, held.data(), std::vector<i32>{2, 2, 0, 1}.data()) == 2);
    CHECK(count_new_pairs(team, 2, 2, held.data(), std::vector<i32>{0, 1, 0, 0}.data()) == 0);
  });
}

TEST_CASE("cost: the terms of a placement are the audit's") {
  int32_t near = 0, replicated = 0;
  for (uint64_t stream = 0; stream < 200; ++stream) {
    Random random(stream + 1100);
    const auto instance = draw_instance(random);
    INFO("seed " << base_seed() << ", stream " << stream << ": " << describe(*instance));
    const ProblemInput& in = instance->problem();
    const Quantised q = quantise(in);
    const LayerRig rig(kernels_base(), in, q, 0);
    const std::vector<int32_t> all = draw_placement(random, in, q), placement = live_part(q, all.data());
    const AuditedLayer audit = audit_layer(in, q, 0, all.data(), "placement");
    near += q.nearest;
    replicated += q.gpus * q.slots > q.experts;
    const FineLayer& fine = rig.tables().fine;
    over_teams(0, [&](auto& team, const std::string& name) {
      INFO(name);
      const size_t gpus = static_cast<size_t>(q.gpus), experts = static_cast<size_t>(q.experts);
      std::vector<i32> ids(experts, -5), first(experts + 1, -5), hosts(placement.size(), -5);
      std::vector<i64> load(gpus, -5), comm(gpus, -5);
      count_replicas(team, q.experts, q.gpus * q.slots, placement.data(), ids.data());
      const FineTerms terms =
          q.nearest ? fine_terms_nearest(team, fine, placement.data(), first.data(), hosts.data(), load.data(), comm.data())
                    : fine_terms_even(team, fine, placement.data(), ids.data(), load.data(), comm.data());
      REQUIRE(terms.load_max == audit.load_max);
      REQUIRE(terms.comm_max == audit.comm_max);
      REQUIRE(terms.comm_total == audit.comm_total);
      REQUIRE(terms.migrations == 0);
      if (rig.has_incumbent()) {
        REQUIRE(count_new_pairs(team, q.gpus, q.slots, rig.view().held, placement.data()) == audit.migrations);
      }
    });
  }
  CHECK(near > 30);
  CHECK(replicated > 80);
}

TEST_CASE("cost: new pairs are those of the recount, each once") {
  int32_t some = 0, doubled = 0;
  for (uint64_t stream = 0; stream < 300; ++stream) {
    Random random(stream + 1300);
    LayerView v;  // only what the recount of pairs reads
    v.experts = random.between(1, 12);
    v.gpus = random.between(1, 20);
    v.stride = padded_gpus(v.gpus);
    v.slots = random.between(1, 6);
    const size_t pairs = static_cast<size_t>(v.experts) * static_cast<size_t>(v.stride);
    const std::vector<i32> zero(pairs, 0);
    v.load = v.comm = zero.data();
    std::vector<u8> held(pairs, 0);
    for (u8& copies : held) copies = random.chance(0.5) ? 0 : static_cast<u8>(random.between(1, 3));
    v.held = held.data();
    std::vector<i32> placement(static_cast<size_t>(v.gpus) * static_cast<size_t>(v.slots));
    for (i32& e : placement) e = random.below(v.experts);
    INFO("seed " << base_seed() << ", stream " << stream);
    const test::Recount r = test::recount_placement(v, placement);
    i64 expected = 0;
    for (i32 e = 0; e < v.experts; ++e) {
      for (i32 g = 0; g < v.gpus; ++g) {
        const size_t pair = static_cast<size_t>(e * v.stride + g);
        expected += r.copies[pair] > 0 && held[pair] == 0;
      }
    }
    some += expected > 0;
    doubled += expected < r.new_slots;
    over_teams(0, [&](auto& team, const std::string& name) {
      INFO(name);
      REQUIRE(count_new_pairs(team, v.gpus, v.slots, held.data(), placement.data()) == expected);
    });
  }
  CHECK(some > 200);
  CHECK(doubled > 100);
}

namespace {

// A candidate over GPUs some of which are dead, right or spoiled.
struct Candidate {
  i32 experts = 0;
  i32 slots = 0;
  std::vector<i32> live_index;  // [all_gpus]
  std::vector<i32> slot;        // [all_gpus][slots]
  i32 live_gpus() const {
    return static_cast<i32>(std::count_if(live_index.begin(), live_index.end(), [](i32 live) { return live >= 0; }));
  }
};

Candidate draw_candidate(Random& random) {
  Candidate c;
  const i32 all_gpus = random.between(1, 12);
  i32 live = 0;
  for (i32 g = 0; g < all_gpus; ++g) c.live_index.push_back(random.chance(0.3) ? -1 : live++);
  if (live == 0) c.live_index[0] = live++;
  c.slots = random.between(1, 5);
  c.experts = random.between(1, live * c.slots);
  std::vector<i32> experts(static_cast<size_t>(live * c.slots));
  for (size_t n = 0; n < experts.size(); ++n) {
    experts[n] = n < static_cast<size_t>(c.experts) ? static_cast<i32>(n) : random.below(c.experts);
  }
  random.shuffle(&experts);
  for (i32 m = 0; m < all_gpus * c.slots; ++m) {
    const i32 g = c.live_index[static_cast<size_t>(m / c.slots)];
    c.slot.push_back(g < 0 ? -1 : experts[static_cast<size_t>(g * c.slots + m % c.slots)]);
  }
  const auto any_slot = [&]() -> i32& { return c.slot[static_cast<size_t>(random.below(all_gpus * c.slots))]; };
  for (i32 n = random.below(4); n > 0; --n) {
    const std::vector<i32> bad = {-1, -2, INT32_MIN, c.experts, INT32_MAX};
    any_slot() = random.chance(0.5) ? random.below(c.experts) : bad[static_cast<size_t>(random.below(5))];
  }
  if (random.chance(0.3)) {  // an expert gives all of its slots to another
    const i32 lost = random.below(c.experts), other = random.below(c.experts);
    std::replace(c.slot.begin(), c.slot.end(), lost, other);
  }
  return c;
}

// The first slot at fault, the plain way.
i32 fault_of(const Candidate& c) {
  for (size_t m = 0; m < c.slot.size(); ++m) {
    const bool dead = c.live_index[m / static_cast<size_t>(c.slots)] < 0;
    if (dead ? c.slot[m] != -1 : c.slot[m] < 0 || c.slot[m] >= c.experts) return static_cast<i32>(m);
  }
  for (i32 e = 0; e < c.experts; ++e) {
    if (std::find(c.slot.begin(), c.slot.end(), e) == c.slot.end()) return 0;
  }
  return -1;
}

}  // namespace

TEST_CASE("cost: a candidate is read onto the live GPUs, or its first fault is found") {
  int32_t valid = 0, missing = 0, later = 0;
  for (uint64_t stream = 0; stream < 3000; ++stream) {
    Random random(stream + 1700);
    const Candidate c = draw_candidate(random);
    INFO("seed " << base_seed() << ", stream " << stream);
    const i32 expected = fault_of(c);
    valid += expected < 0;
    missing += expected == 0 && c.slot[0] < c.experts && (c.live_index[0] < 0) == (c.slot[0] == -1);
    later += expected > 0;
    std::vector<i32> live_part;
    for (size_t m = 0; m < c.slot.size(); ++m) {
      if (c.live_index[m / static_cast<size_t>(c.slots)] >= 0) live_part.push_back(c.slot[m]);
    }
    const LiveGpus which{static_cast<i32>(c.live_index.size()), c.live_index.data()};
    over_teams(c.slot.size(), [&](auto& team, const std::string& name) {
      INFO(name);
      std::vector<i32> live(static_cast<size_t>(c.live_gpus() * c.slots), -9), replicas(static_cast<size_t>(c.experts), -9);
      LiveGpus given = which;
      if (c.live_gpus() == which.all_gpus && stream % 2 == 0) given.live_index = nullptr;  // says the same
      REQUIRE(read_candidate(team, c.experts, c.slots, given, c.slot.data(), live.data(), replicas.data()) == expected);
      if (expected >= 0) return;
      REQUIRE(live == live_part);
      std::vector<i32> counted(replicas.size(), 0);
      for (i32 e : live_part) ++counted[static_cast<size_t>(e)];
      REQUIRE(replicas == counted);
    });
  }
  CHECK(valid > 300);
  CHECK(missing > 300);
  CHECK(later > 300);
}
