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
#include "tables.h"
#include "units.h"

namespace gimbal {
namespace spec {

// Prices per GPU: Q31 for load and communication, search units for a slot.
struct DualPrices {
  i64* load = nullptr;   // [stride]
  i64* comm = nullptr;   // [stride]
  i64* slot = nullptr;   // [stride]
};

// The least max over experts of floor(load / replicas) with `cells` replicas in all and at most `most` for each. Greedy is
// exact here: lowering the maximum always needs one more replica of the expert that attains it.
GIMBAL_SPEC_LONG i64 least_replica_load(const i64* load, i32 experts, i32 cells, i32 most, i32* replicas, i64* share) {
  for (i32 e = 0; e < experts; ++e) {
    replicas[e] = 1;
    share[e] = load[e];
  }
  for (i32 n = experts;; ++n) {
    i64 greatest = -1;
    GIMBAL_VECTOR_LOOP
    for (i32 e = 0; e < experts; ++e) greatest = max_of(greatest, share[e]);
    i32 heaviest = 0;
    while (share[heaviest] != greatest) ++heaviest;
    if (n >= cells || replicas[heaviest] >= most) return greatest;
    ++replicas[heaviest];
    share[heaviest] = fine_share(load[heaviest], replicas[heaviest]);
  }
}

// Rescales prices so that they sum to at most `total`.
GIMBAL_SPEC_LONG void normalise(i64* price, i32 gpus, i64 total) {
  i64 sum = 0;
  for (i32 g = 0; g < gpus; ++g) sum += price[g];
  if (sum == 0) return;
  for (i32 g = 0; g < gpus; ++g) price[g] = price[g] * total / sum;
}

// One multiplicative step: a GPU that the relaxation overloads becomes dearer. `step` is Q16.
GIMBAL_SPEC_LONG void raise_prices(i64* price, const i64* use, i32 gpus, i64 total, i64 step) {
  i64 sum = 0;
  for (i32 g = 0; g < gpus; ++g) sum += use[g];
  if (sum == 0) return;
  for (i32 g = 0; g < gpus; ++g) {
    const i64 excess = (use[g] * gpus - sum) * 256 / sum;  // Q8 of the mean
    const i64 change = max_of<i64>(-(i64{1} << 15), min_of<i64>(i64{1} << 15, excess * step / 256));
    price[g] += (price[g] * change) >> 16;
    price[g] = max_of<i64>(price[g], 1);
  }
  normalise(price, gpus, total);
}

// Finds prices for `even`. `row` is scratch [stride]; use_* are scratch [stride]. `extra_price` is added to the view's own
// price of a new pair (a budget's multiplier).
GIMBAL_SPEC_LONG void improve_prices(const LayerView& v, i32 extra_price, i32 iterations, DualPrices prices, DualPrices best,
                           i64* use_load, i64* use_comm, i64* use_slots, i32* row) {
  const i64 comm_total = v.comm_term == CommTerm::kAbsent ? 0 : v.comm_term == CommTerm::kUnit ? kOneQ31 : v.max_scale;
  for (i32 g = 0; g < v.gpus; ++g) {
    prices.load[g] = best.load[g] = kOneQ31 / v.gpus;
    prices.comm[g] = best.comm[g] = comm_total / v.gpus;
    prices.slot[g] = best.slot[g] = 0;
  }
  i64 best_value = -1;
  for (i32 n = 0; n < iterations; ++n) {
    i64 value = 0;
    for (i32 g = 0; g < v.gpus; ++g) {
      use_load[g] = use_comm[g] = use_slots[g] = 0;
      value -= prices.slot[g] * v.slots;
    }
    for (i32 e = 0; e < v.experts; ++e) {
      const i32* comm = v.comm + static_cast<i64>(e) * v.stride;
      i32 least = INT32_MAX;
      GIMBAL_VECTOR_LOOP
      for (i32 g = 0; g < v.gpus; ++g) {
        const i32 load = v.uniform_compute ? v.load[e] : v.load[static_cast<i64>(e) * v.stride + g];
        const i32 fresh = v.held != nullptr && v.held[static_cast<i64>(e) * v.stride + g] == 0 ? v.price + extra_price : 0;
        row[g] = mul_q31(load, static_cast<u32>(prices.load[g])) +
                 mul_q31(comm[g], static_cast<u32>(min_of<i64>(prices.comm[g] + v.total_scale, UINT32_MAX))) + fresh +
                 static_cast<i32>(prices.slot[g]);
        least = min_of(least, row[g]);
      }
      i32 g = 0;
      while (row[g] != least) ++g;
      value += least;
      use_load[g] += v.uniform_compute ? v.load[e] : v.load[static_cast<i64>(e) * v.stride + g];
      use_comm[g] += comm[g];
      use_slots[g] += 1;
    }
    if (value > best_value) {
      best_value = value;
      for (i32 g = 0; g < v.gpus; ++g) {
        best.load[g] = prices.load[g];
        best.comm[g] = prices.comm[g];
        best.slot[g] = prices.slot[g];
      }
    }
    const i64 step = (i64{1} << 14) / (1 + n / 2);
    raise_prices(prices.load, use_load, v.gpus, kOneQ31, step);
    if (comm_total > 0) raise_prices(prices.comm, use_comm, v.gpus, comm_total, step);
    const i64 slot_step = max_of<i64>(value, 0) / (i64{8} * v.gpus * v.slots * (1 + n));
    for (i32 g = 0; g < v.gpus; ++g) {
      prices.slot[g] = max_of<i64>(0, min_of<i64>(i64{1} << 24, prices.slot[g] + (use_slots[g] - v.slots) * slot_step));
    }
  }
}

// The bound that `prices` prove, in units of J, rounded down. `shift` turns slot prices back to fine units; `migration` is
// the price of a new pair.
GIMBAL_SPEC_LONG i64 prove_bound(const FineLayer& v, const FineWeights& w, const DualPrices& prices, const u8* held, i64 migration,
                       int shift, i64 least_load, i64* minimum) {
  const i32 stride = padded_gpus(v.gpus);
  i64 bound = 0, load_sum = 0;
  const i64 rounding = 2 * i64{v.slots} * v.gpus * (v.nearest ? v.sources : 1) + 8;
  for (i32 g = 0; g < v.gpus; ++g) load_sum += prices.load[g] * w.load >> 31;
  const u32 comm_weight = max_of(w.comm_max, w.comm_total);
  if (v.nearest) {
    // Every (source, expert) flow goes to the GPU cheapest for it; the choice is the same for all experts of a source.
    for (i32 s = 0; s < v.sources; ++s) {
      i64 tokens = 0;
      for (i32 e = 0; e < v.experts; ++e) tokens += v.tokens[static_cast<i64>(s) * v.experts + e];
      i64 least = INT64_MAX;
      for (i32 g = 0; g < v.gpus; ++g) {
        const u32 u = static_cast<u32>(prices.load[g] * w.load >> 31);
        const u32 c = static_cast<u32>(prices.comm[g] * comm_weight >> 31);
        const i64 comm = tokens * v.comm_cost[static_cast<i64>(s) * v.gpus + g];
        least = min_of(least, mul_q31_wide(tokens * v.compute_cost[g], u) + mul_q31_wide(comm, c) +
                                  mul_q31_wide(comm, w.comm_total));
      }
      bound += least;
    }
  } else {
    for (i32 e = 0; e < v.experts; ++e) minimum[e] = INT64_MAX;
    for (i32 g = 0; g < v.gpus; ++g) {
      const u32 u = static_cast<u32>(prices.load[g] * w.load >> 31);
      const u32 c = static_cast<u32>(prices.comm[g] * comm_weight >> 31);
      const i64 slot = prices.slot[g] << shift;
      const i64* comm = v.comm + static_cast<i64>(g) * v.experts;
      for (i32 e = 0; e < v.experts; ++e) {
        const i64 fresh = held != nullptr && held[static_cast<i64>(e) * stride + g] == 0 ? migration : 0;
        const i64 cost = mul_q31_wide(v.expert_tokens[e] * v.compute_cost[g], u) + mul_q31_wide(comm[e], c) +
                         mul_q31_wide(comm[e], w.comm_total) + fresh + slot;
        minimum[e] = min_of(minimum[e], cost);
      }
      bound -= slot * v.slots;
    }
    for (i32 e = 0; e < v.experts; ++e) bound += minimum[e];
  }
  bound += mul_q31_wide(least_load, static_cast<u32>(max_of<i64>(0, i64{w.load} - load_sum)));
  bound = max_of(bound, mul_q31_wide(least_load, w.load));
  return max_of<i64>(0, bound - rounding);
}

}  // namespace spec
}  // namespace gimbal
