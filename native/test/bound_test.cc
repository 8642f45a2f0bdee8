// The certificate's parts: any prices prove a bound, so it must hold for prices that nobody would choose; and where the
// relaxation is exact, so is the bound.
#include <doctest/doctest.h>

#include <algorithm>
#include <functional>

#include "../spec/bound.h"
#include "instance.h"
#include "layer_rig.h"
#include "plain_team.h"

using namespace gimbal;
using namespace gimbal::spec;
using gimbal::test::base_seed;
using gimbal::test::draw_instance;
using gimbal::test::draw_placement;
using gimbal::test::Instance;
using gimbal::test::LayerRig;
using gimbal::test::live_part;
using gimbal::test::over_teams;
using gimbal::test::Random;

namespace {

// Prices of any shape with at most `total` in all: even, on few GPUs, or on one.
std::vector<i64> draw_prices(Random& random, i32 gpus, i64 total) {
  std::vector<i64> prices(static_cast<size_t>(padded_gpus(gpus)), 0);
  i64 left = total;
  const bool even = random.chance(0.3);
  for (i32 g = 0; g < gpus; ++g) {
    const i64 part = even ? total / gpus : random.chance(0.4) ? static_cast<i64>(static_cast<double>(left) * random.uniform()) : 0;
    prices[static_cast<size_t>(g)] = part;
    left -= part;
  }
  if (!even && random.chance(0.5)) prices[static_cast<size_t>(random.below(gpus))] += left;
  return prices;
}

// Of a placement [gpus][slots]: the objective with its migrations at `price`.
i64 objective_of(const LayerRig& rig, const Quantised& q, const std::vector<int32_t>& placement, i64 price) {
  spec::FineTerms terms = rig.evaluate(placement);
  const u8* held = rig.view().held;
  std::vector<u8> counted(static_cast<size_t>(q.experts) * static_cast<size_t>(rig.view().stride), 0);
  for (i32 m = 0; held != nullptr && m < q.gpus * q.slots; ++m) {
    const size_t pair = static_cast<size_t>(placement[static_cast<size_t>(m)]) * static_cast<size_t>(rig.view().stride) + static_cast<size_t>(m / q.slots);
    if (held[pair] == 0 && counted[pair]++ == 0) ++terms.migrations;
  }
  FineWeights weights = q.weights;
  weights.migration = price;
  return fine_objective(weights, terms);
}

}  // namespace

TEST_CASE("bound: prices of any shape prove nothing false") {
  for (uint64_t stream = 0; stream < 300; ++stream) {
    Random random(stream + 20000);
    const auto instance = draw_instance(random);
    INFO("seed " << base_seed() << ", stream " << stream << ": " << describe(*instance));
    const ProblemInput& in = instance->problem();
    const Quantised q = quantise(in);
    const LayerRig rig(kernels_base(), in, q, 0);
    const LayerView& v = rig.view();
    const i64 comm_total = v.comm_term == CommTerm::kAbsent ? 0 : v.comm_term == CommTerm::kUnit ? kOneQ31 : v.max_scale;
    std::vector<i64> slot = draw_prices(random, q.gpus, i64{1} << random.between(0, 24));
    std::vector<i64> load = draw_prices(random, q.gpus, kOneQ31), comm = draw_prices(random, q.gpus, comm_total);
    const DualPrices prices{load.data(), comm.data(), slot.data()};
    // A price of migrations as a budget sets it, above the problem's own.
    const i64 price = q.weights.migration + static_cast<i64>(random.any_magnitude(30));
    std::vector<i64> minimum(static_cast<size_t>(q.experts));
    i64 bound = -1;
    over_teams(0, [&](auto& team, const std::string& name) {
      INFO(name);
      std::fill(minimum.begin(), minimum.end(), -1);
      const i64 proved = prove_bound(team, rig.tables().fine, q.weights, prices, v.held, price, rig.tables().scale.shift, 0,
                                     minimum.data());
      if (bound >= 0) REQUIRE(proved == bound);
      bound = proved;
    });
    for (int n = 0; n < 20; ++n) {
      REQUIRE(objective_of(rig, q, live_part(q, draw_placement(random, in, q).data()), price) >= bound);
    }
    if (rig.has_incumbent()) REQUIRE(objective_of(rig, q, rig.incumbent().start, price) >= bound);
  }
}

TEST_CASE("bound: the least replica load is that of the best of all counts") {
  for (uint64_t stream = 0; stream < 400; ++stream) {
    Random random(stream + 21000);
    const i32 experts = random.between(1, 4), most = random.between(1, 4);
    const i32 cells = random.between(experts, experts * most);
    std::vector<i64> load(static_cast<size_t>(experts));
    for (i64& x : load) x = static_cast<i64>(random.any_magnitude(random.between(1, 40)));
    std::vector<i32> counts(static_cast<size_t>(experts));
    std::vector<i64> share(static_cast<size_t>(experts));
    i64 least = INT64_MAX;
    const std::function<void(i32, i32, i64)> choose = [&](i32 e, i32 left, i64 greatest) {
      if (e == experts) {
        least = std::min(least, greatest);
        return;
      }
      for (i32 n = 1; n <= std::min(most, left - (experts - e - 1)); ++n) {
        choose(e + 1, left - n, std::max(greatest, load[static_cast<size_t>(e)] / n));
      }
    };
    choose(0, cells, 0);
    INFO("seed " << base_seed() << ", stream " << stream);
    over_teams(static_cast<size_t>(experts), [&](auto& team, const std::string& name) {
      INFO(name);
      REQUIRE(least_replica_load(team, load.data(), experts, cells, most, counts.data(), share.data()) == least);
    });
  }
}

TEST_CASE("bound: prices stay within their total however they are raised") {
  for (uint64_t stream = 0; stream < 200; ++stream) {
    Random random(stream + 22000);
    const i32 gpus = random.between(1, 40);
    const i64 total = static_cast<i64>(std::min<u64>(random.any_magnitude(32), kOneQ31));
    over_teams(0, [&](auto& team, const std::string& name) {
      INFO(name);
      std::vector<i64> price(static_cast<size_t>(gpus), total / gpus), use(static_cast<size_t>(gpus));
      for (int n = 0; n < 30; ++n) {
        for (i64& u : use) u = random.chance(0.3) ? 0 : static_cast<i64>(random.any_magnitude(33));
        raise_prices(team, price.data(), use.data(), gpus, total, i64{1} << random.between(0, 15));
        i64 sum = 0;
        for (i64 p : price) {
          REQUIRE(p >= 0);
          sum += p;
        }
        REQUIRE(sum <= total);
      }
    });
  }
}

TEST_CASE("bound: the relaxation asks for every expert whole at the GPU cheapest for it") {
  for (uint64_t stream = 0; stream < 150; ++stream) {
    Random random(stream + 23000);
    const auto instance = draw_instance(random);
    INFO("seed " << base_seed() << ", stream " << stream << ": " << describe(*instance));
    const ProblemInput& in = instance->problem();
    const Quantised q = quantise(in);
    const LayerRig rig(kernels_base(), in, q, 0);
    const LayerView& v = rig.view();
    std::vector<i64> load_price = draw_prices(random, q.gpus, kOneQ31), comm_price = draw_prices(random, q.gpus, kOneQ31);
    std::vector<i64> slot_price = draw_prices(random, q.gpus, i64{1} << random.between(0, 24));
    const i32 price = static_cast<i32>(random.any_magnitude(24));
    const size_t stride = static_cast<size_t>(v.stride);
    std::vector<i64> load(stride, 0), comm(stride, 0), slots(stride, 0);
    i64 value = 0;
    for (size_t g = 0; g < static_cast<size_t>(q.gpus); ++g) value -= slot_price[g] * q.slots;
    const auto q31 = [](i64 x, i64 factor) { return static_cast<i64>(static_cast<unsigned __int128>(x) * static_cast<u64>(factor) >> 31); };
    for (i32 e = 0; e < q.experts; ++e) {
      i64 least = INT64_MAX;
      size_t where = 0;
      for (size_t g = 0; g < static_cast<size_t>(q.gpus); ++g) {
        const size_t pair = static_cast<size_t>(e) * stride + g;
        const i64 cost = q31(v.uniform_compute ? v.load[e] : v.load[pair], load_price[g]) +
                         q31(v.comm[pair], std::min<i64>(comm_price[g] + v.total_scale, UINT32_MAX)) + slot_price[g] +
                         (v.held != nullptr && v.held[pair] == 0 ? price : 0);
        if (cost < least) {
          least = cost;
          where = g;
        }
      }
      value += least;
      load[where] += v.uniform_compute ? v.load[e] : v.load[static_cast<size_t>(e) * stride + where];
      comm[where] += v.comm[static_cast<size_t>(e) * stride + where];
      ++slots[where];
    }
    over_teams(static_cast<size_t>(q.gpus), [&](auto& team, const std::string& name) {
      INFO(name);
      std::vector<i64> asked_load(stride, -9), asked_comm(stride, -9), asked_slots(stride, -9), asked_value(1, -9);
      const DualPrices prices{load_price.data(), comm_price.data(), slot_price.data()};
      ask_relaxation(team, v, price, prices, {asked_load.data(), asked_comm.data(), asked_slots.data(), asked_value.data()});
      REQUIRE(asked_value[0] == value);
      for (size_t g = 0; g < static_cast<size_t>(q.gpus); ++g) {
        REQUIRE(asked_load[g] == load[g]);
        REQUIRE(asked_comm[g] == comm[g]);
        REQUIRE(asked_slots[g] == slots[g]);
      }
    });
  }
}

TEST_CASE("bound: a layer's bound holds for every price of migrations") {
  for (uint64_t stream = 0; stream < 150; ++stream) {
    Random random(stream + 24000);
    const auto instance = draw_instance(random);
    INFO("seed " << base_seed() << ", stream " << stream << ": " << describe(*instance));
    const ProblemInput& in = instance->problem();
    const Quantised q = quantise(in);
    const LayerRig rig(kernels_base(), in, q, 0);
    const i64 price = q.weights.migration + static_cast<i64>(random.any_magnitude(40));
    const i64 bound = rig.bound(q.weights, price, random.between(0, 20));
    for (int n = 0; n < 12; ++n) {
      REQUIRE(objective_of(rig, q, live_part(q, draw_placement(random, in, q).data()), price) >= bound);
    }
    if (rig.has_incumbent()) REQUIRE(objective_of(rig, q, rig.incumbent().start, price) >= bound);
  }
}

TEST_CASE("bound: one GPU is exact") {
  // Nothing to choose: the only placement costs what the bound says, up to its rounding.
  for (double comm_total : {0.0, 0.1, 0.9, 1.0, 3.0}) {
    for (double comm_max : {0.0, 0.5, 1.0}) {
      auto instance = std::make_unique<Instance>();
      ProblemInput& in = instance->input;
      in.layers = in.sources = in.gpus = 1;
      in.experts = in.slots_per_gpu = 2;
      instance->tokens = {1000, 2000};
      in.compute_cost_ns = {1.0};
      in.comm_cost_ns = {100.0};
      in.weights = {1.0, comm_max, comm_total, 1.0};
      const Quantised q = quantise(instance->problem());
      const LayerRig rig(kernels_base(), instance->problem(), q, 0);
      CAPTURE(comm_max);
      CAPTURE(comm_total);
      const double bound = static_cast<double>(rig.bound(q.weights, 0, 4));
      CHECK(bound == doctest::Approx(static_cast<double>(objective_of(rig, q, {0, 1}, 0))).epsilon(1e-6));
    }
  }
}
