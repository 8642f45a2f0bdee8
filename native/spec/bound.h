// The certificate: a proved lower bound on a layer's J, by Lagrangian duality.
//
// Relax a placement to x[e][g] = the fraction of expert e's tokens that GPU g serves (copies / replicas). Then for any
// prices u, v, m >= 0 with sum(u) <= weight of the load maximum and sum(v) <= weight of the communication maximum,
//   J >= sum over e of min over g of { u_g load[e][g] + (v_g + w_total) comm[e][g] + [new pair] price + m_g }
//        - slots * sum(m) + (w_load - sum(u)) * L0,
// because x[e] is a convex combination over GPUs, sum over e of x[e][g] <= slots, and no placement's busiest GPU is below
// L0, the least possible maximum of tokens / replicas over experts. Under `nearest` the minimum is taken per source, since
// each source chooses for itself. The prices are found in search units by a few multiplicative updates; any prices prove a
// bound, so only the last evaluation must be exact, and it rounds down.
#pragma once

#include "cost.h"
#include "layer.h"
#include "order.h"
#include "tables.h"
#include "types.h"
#include "units.h"

namespace gimbal {
namespace spec {

// The least max over experts of floor(load / replicas) with `cells` replicas in all and at most `most` for each. Greedy is
// exact here: lowering the maximum always needs one more replica of the expert that attains it.
template <class Team>
GIMBAL_OVER_TEAM i64 least_replica_load(Team& team, const i64* load, i32 experts, i32 cells, i32 most, i32* replicas,
                                   i64* share) {
  team.for_each(experts, [=](i32 e) GIMBAL_LAMBDA {
    replicas[e] = 1;
    share[e] = load[e];
  });
  for (i32 n = experts;; ++n) {
    const i64 greatest = team.max(experts, [=](i32 e) GIMBAL_LAMBDA { return share[e]; });
    const i32 heaviest = team.argmin(experts, [=](i32 e) GIMBAL_LAMBDA { return share[e] == greatest ? 0 : 1; }).index;
    if (n >= cells || replicas[heaviest] >= most) return greatest;
    team.single([=]() GIMBAL_LAMBDA {
      ++replicas[heaviest];
      share[heaviest] = fine_share(load[heaviest], replicas[heaviest]);
    });
  }
}

// One multiplicative step: a GPU that the relaxation overloads becomes dearer; then all of them sum to at most `total`
// again. `step` is Q16.
template <class Team>
GIMBAL_OVER_TEAM void raise_prices(Team& team, i64* price, const i64* use, i32 gpus, i64 total, i64 step) {
  const i64 sum = team.sum(gpus, [=](i32 g) GIMBAL_LAMBDA { return use[g]; });
  if (sum == 0) return;
  team.for_each(gpus, [=](i32 g) GIMBAL_LAMBDA {
    const i64 excess = (use[g] * gpus - sum) * 256 / sum;  // Q8 of the mean
    const i64 change = max_of<i64>(-(i64{1} << 15), min_of<i64>(i64{1} << 15, excess * step / 256));
    price[g] = max_of<i64>(price[g] + ((price[g] * change) >> 16), 1);
  });
  const i64 prices = team.sum(gpus, [=](i32 g) GIMBAL_LAMBDA { return price[g]; });
  team.sync();
  team.for_each(gpus, [=](i32 g) GIMBAL_LAMBDA { price[g] = price[g] * total / prices; });
}

// What each GPU is asked for when every expert goes where it is cheapest at these prices.
template <class Team>
GIMBAL_OVER_TEAM void ask_relaxation(Team& team, const LayerView& v, i32 price, const DualPrices& p, const DualUse& use) {
  const i32 gpus = v.gpus;
  const i64 stride = v.stride;
  const i32 slots = v.slots;
  const i64* const load_price = p.load;
  const i64* const comm_price = p.comm;
  const i64* const slot_price = p.slot;
  const i64 base = team.sum(gpus, [=](i32 g) GIMBAL_LAMBDA { return -slot_price[g] * slots; });
  const DualUse to = use;
  team.for_each(gpus, [=](i32 g) GIMBAL_LAMBDA {
    to.load[g] = to.comm[g] = to.slots[g] = 0;
    if (g == 0) to.value[0] = base;
  });
  const i32* const load = v.load;
  const i32* const comm = v.comm;
  const u8* const held = v.held;
  const bool uniform = v.uniform_compute;
  const u32 total_scale = v.total_scale;
  const auto load_of = [=](i32 e, i32 g) GIMBAL_LAMBDA { return uniform ? load[e] : load[e * stride + g]; };
  team.min_rows(
      v.experts, gpus,
      [=](i32 e, i32 g) GIMBAL_LAMBDA {
        const i32 fresh = held != nullptr && held[e * stride + g] == 0 ? price : 0;
        return mul_q31(load_of(e, g), static_cast<u32>(load_price[g])) +
               mul_q31(comm[e * stride + g], static_cast<u32>(min_of<i64>(comm_price[g] + total_scale, UINT32_MAX))) +
               fresh + static_cast<i32>(slot_price[g]);
      },
      [=](i32 e, Best least) GIMBAL_LAMBDA {
        const i32 g = least.index;
        Team::add(&to.value[0], i64{least.score});
        Team::add(&to.load[g], i64{load_of(e, g)});
        Team::add(&to.comm[g], i64{comm[e * stride + g]});
        Team::add(&to.slots[g], i64{1});
      });
}

// Finds prices for `even`, the best of which end up in scratch.best. `extra_price` is added to the view's own price of a new
// pair (a budget's multiplier).
template <class Team>
GIMBAL_OVER_TEAM void improve_prices(Team& team, const LayerView& view, i32 extra_price, i32 iterations,
                                const BoundScratch& scratch) {
  const i32 gpus = view.gpus;
  const i32 slots = view.slots;
  const DualPrices prices = scratch.prices;
  const DualPrices best = scratch.best;
  const DualUse use = scratch.use;
  const i64 comm_total =
      view.comm_term == CommTerm::kAbsent ? 0 : view.comm_term == CommTerm::kUnit ? kOneQ31 : view.max_scale;
  team.for_each(gpus, [=](i32 g) GIMBAL_LAMBDA {
    prices.load[g] = best.load[g] = kOneQ31 / gpus;
    prices.comm[g] = best.comm[g] = comm_total / gpus;
    prices.slot[g] = best.slot[g] = 0;
  });
  i64 best_value = -1;
  for (i32 n = 0; n < iterations; ++n) {
    ask_relaxation(team, view, view.price + extra_price, prices, use);
    const i64 value = use.value[0];
    if (value > best_value) {
      best_value = value;
      team.for_each(gpus, [=](i32 g) GIMBAL_LAMBDA {
        best.load[g] = prices.load[g];
        best.comm[g] = prices.comm[g];
        best.slot[g] = prices.slot[g];
      });
    }
    const i64 step = (i64{1} << 14) / (1 + n / 2);
    raise_prices(team, prices.load, use.load, gpus, kOneQ31, step);
    if (comm_total > 0) raise_prices(team, prices.comm, use.comm, gpus, comm_total, step);
    const i64 slot_step = max_of<i64>(value, 0) / (i64{8} * gpus * slots * (1 + n));
    team.for_each(gpus, [=](i32 g) GIMBAL_LAMBDA {
      const i64 raised = prices.slot[g] + (use.slots[g] - slots) * slot_step;
      prices.slot[g] = max_of<i64>(0, min_of<i64>(i64{1} << 24, raised));
    });
  }
}

// The prices of one GPU in fine units. A bound must hold for the weights as they are, so each keeps its own rounding.
GIMBAL_SPEC i64 fine_flow_cost(const FineWeights& w, i64 load, i64 comm, u32 load_price, u32 comm_price) {
  return mul_q31_wide(load, load_price) + mul_q31_wide(comm, comm_price) + mul_q31_wide(comm, w.comm_total);
}

// `even`: every expert whole at the GPU cheapest for it, less what the slots bring in.
template <class Team>
GIMBAL_OVER_TEAM i64 relaxed_even(Team& team, const FineLayer& layer, const FineWeights& weights, const DualPrices& prices,
                             const u8* held, i64 migration, int shift, i64* minimum) {
  const FineLayer v = layer;
  const FineWeights w = weights;
  const DualPrices p = prices;
  const i64 stride = padded_gpus(v.gpus);
  const u32 comm_weight = max_of(w.comm_max, w.comm_total);
  team.for_each(v.experts, [=](i32 e) GIMBAL_LAMBDA { minimum[e] = INT64_MAX; });
  for (i32 g = 0; g < v.gpus; ++g) {
    const u32 load_price = static_cast<u32>(p.load[g] * w.load >> 31);
    const u32 comm_price = static_cast<u32>(p.comm[g] * comm_weight >> 31);
    const i64 slot = p.slot[g] << shift;
    const i64 compute_cost = v.compute_cost[g];
    const i64* const comm = v.comm + static_cast<i64>(g) * v.experts;
    team.for_each(v.experts, [=](i32 e) GIMBAL_LAMBDA {
      const i64 fresh = held != nullptr && held[e * stride + g] == 0 ? migration : 0;
      const i64 cost = fine_flow_cost(w, v.expert_tokens[e] * compute_cost, comm[e], load_price, comm_price) + fresh + slot;
      minimum[e] = min_of(minimum[e], cost);
    });
  }
  return team.sum(v.experts, [=](i32 e) GIMBAL_LAMBDA { return minimum[e]; }) -
         team.sum(v.gpus, [=](i32 g) GIMBAL_LAMBDA { return (p.slot[g] << shift) * v.slots; });
}

// `nearest`: every (source, expert) flow goes to the GPU cheapest for it; the choice is the same for all experts of a source.
template <class Team>
GIMBAL_OVER_TEAM i64 relaxed_nearest(Team& team, const FineLayer& layer, const FineWeights& weights, const DualPrices& prices) {
  const FineLayer v = layer;
  const FineWeights w = weights;
  const DualPrices p = prices;
  const u32 comm_weight = max_of(w.comm_max, w.comm_total);
  return team.sum(v.sources, [=](i32 s) GIMBAL_LAMBDA {
    i64 tokens = 0;
    for (i32 e = 0; e < v.experts; ++e) tokens += v.tokens[static_cast<i64>(s) * v.experts + e];
    i64 least = INT64_MAX;
    for (i32 g = 0; g < v.gpus; ++g) {
      const u32 load_price = static_cast<u32>(p.load[g] * w.load >> 31);
      const u32 comm_price = static_cast<u32>(p.comm[g] * comm_weight >> 31);
      const i64 comm = tokens * v.comm_cost[static_cast<i64>(s) * v.gpus + g];
      least = min_of(least, fine_flow_cost(w, tokens * v.compute_cost[g], comm, load_price, comm_price));
    }
    return least;
  });
}

// The bound that `prices` prove, in units of J, rounded down. `shift` turns slot prices back to fine units; `migration` is
// the price of a new pair.
template <class Team>
GIMBAL_OVER_TEAM i64 prove_bound(Team& team, const FineLayer& v, const FineWeights& w, const DualPrices& prices, const u8* held,
                            i64 migration, int shift, i64 least_load, i64* minimum) {
  const i64* const load_price = prices.load;
  const u32 load_weight = w.load;
  const i64 load_sum = team.sum(v.gpus, [=](i32 g) GIMBAL_LAMBDA { return load_price[g] * load_weight >> 31; });
  i64 bound = v.nearest ? relaxed_nearest(team, v, w, prices)
                        : relaxed_even(team, v, w, prices, held, migration, shift, minimum);
  bound += mul_q31_wide(least_load, static_cast<u32>(max_of<i64>(0, i64{w.load} - load_sum)));
  bound = max_of(bound, mul_q31_wide(least_load, w.load));
  const i64 rounding = 2 * i64{v.slots} * v.gpus * (v.nearest ? v.sources : 1) + 8;
  return max_of<i64>(0, bound - rounding);
}

// A proved lower bound on the layer's J with new pairs at `migration` each.
template <class Team>
GIMBAL_OVER_TEAM i64 bound_layer(Team& team, const LayerView& view, const FineLayer& fine, const FineWeights& weights, int shift,
                            i64 migration, i32 iterations, const BoundScratch& scratch) {
  const i64 extra = max_of<i64>(migration - weights.migration, 0);
  improve_prices(team, view, to_search_price(extra, shift), iterations, scratch);
  const u32* const compute_cost = fine.compute_cost;
  const i64* const tokens = fine.expert_tokens;
  i64* const load = scratch.load;
  const i64 cheapest = -team.max(fine.gpus, [=](i32 g) GIMBAL_LAMBDA { return -i64{compute_cost[g]}; });
  team.for_each(fine.experts, [=](i32 e) GIMBAL_LAMBDA { load[e] = tokens[e] * cheapest; });
  // An incumbent may hold duplicates and keep them, so with one an expert's replicas are bounded by the slots alone.
  const bool duplicates = view.allow_duplicates || view.held != nullptr;
  const i32 cells = view.slots * view.gpus;
  const i64 least_load = least_replica_load(team, load, fine.experts, cells, duplicates ? cells : view.gpus,
                                            scratch.replicas, scratch.share);
  return prove_bound(team, fine, weights, scratch.best, view.held, migration, shift, least_load, scratch.minimum);
}

}  // namespace spec
}  // namespace gimbal
