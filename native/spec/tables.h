// From counts and costs to one layer's tables: the fine table A[gpu][expert] = sum over sources of tokens * comm_cost, and
// the search's 32-bit image of it. Written over a Team, in pieces by row, so that a backend may fill a layer with one Team
// or give each row to a Team of its own; every backend fills the same integers.
#pragma once

#include "cost.h"
#include "layer.h"
#include "types.h"
#include "units.h"

namespace gimbal {
namespace spec {

// ---- fine tables

// Fills expert_tokens [experts], and base [experts]: every token at its source's base cost.
template <class Team>
GIMBAL_OVER_TEAM void sum_sources(Team& team, const FineLayer& v, const CostPattern& pattern, i64* expert_tokens, i64* base) {
  const i32 experts = v.experts;
  const u32* const tokens = v.tokens;
  const u32* const cost = pattern.base;
  team.for_each(experts, [=](i32 e) GIMBAL_LAMBDA { expert_tokens[e] = base[e] = 0; });
  team.for_each3(1, v.sources, experts, [=](i32, i32 s, i32 e) GIMBAL_LAMBDA {
    const u32 t = tokens[static_cast<i64>(s) * experts + e];
    expert_tokens[e] += t;
    base[e] += static_cast<i64>(static_cast<u64>(t) * cost[s]);
  });
}

// Fills GPU g's row [experts] of the fine table: the base, and this GPU's exceptions to it.
template <class Team>
GIMBAL_OVER_TEAM void fill_comm_row(Team& team, const FineLayer& v, const CostPattern& pattern, const i64* base, i32 g,
                               i64* row) {
  const i32 experts = v.experts;
  team.for_each(experts, [=](i32 e) GIMBAL_LAMBDA { row[e] = base[e]; });
  for (i32 n = pattern.first[g]; n < pattern.first[g + 1]; ++n) {
    const u32* const tokens = v.tokens + static_cast<i64>(pattern.source[n]) * experts;
    const u32 cost = pattern.magnitude[n];
    if (pattern.below[n]) {
      team.for_each(experts, [=](i32 e) GIMBAL_LAMBDA { row[e] -= static_cast<i64>(static_cast<u64>(tokens[e]) * cost); });
    } else {
      team.for_each(experts, [=](i32 e) GIMBAL_LAMBDA { row[e] += static_cast<i64>(static_cast<u64>(tokens[e]) * cost); });
    }
  }
}

// ---- the search's scale

GIMBAL_SPEC u32 ratio_q31(u32 part, u32 whole) {
  return whole == 0 ? 0 : static_cast<u32>((static_cast<u64>(part) << 31) / whole);
}

// `worst` bounds what any placement of the layer can cost without migrations (units of J).
GIMBAL_SPEC SearchScale search_scale(const FineWeights& w, i64 worst) {
  SearchScale scale;
  while ((worst >> scale.shift) >= (i64{1} << kSearchBits)) ++scale.shift;
  scale.comm_weight = max_of(w.comm_max, w.comm_total);
  scale.total_scale = ratio_q31(w.comm_total, scale.comm_weight);
  scale.max_scale = ratio_q31(w.comm_max, scale.comm_weight);
  if (w.comm_max > 0) scale.comm_term = w.comm_max >= w.comm_total ? CommTerm::kUnit : CommTerm::kScaled;
  return scale;
}

GIMBAL_SPEC i32 to_search(i64 fine, u32 weight, int shift) {
  return static_cast<i32>(mul_q31_wide(fine, weight) >> shift);
}

// A price beyond the dearest layer can never pay; clamped there it still fits.
GIMBAL_SPEC i32 to_search_price(i64 fine, int shift) {
  return static_cast<i32>(min_of<i64>(fine >> shift, i64{1} << kSearchBits));
}

// The sum of the `slots` greatest of values [count], none of them negative: value by value from the top, equals at once.
template <class Team>
GIMBAL_OVER_TEAM i64 sum_of_greatest(Team& team, const i64* values, i32 count, i32 slots) {
  if (slots >= count) return team.sum(count, [=](i32 n) GIMBAL_LAMBDA { return values[n]; });
  i64 sum = 0;
  i64 limit = INT64_MAX;
  for (i64 left = slots; left > 0;) {
    const i64 below = limit;
    const i64 greatest = team.max(count, [=](i32 n) GIMBAL_LAMBDA { return values[n] < below ? values[n] : i64{-1}; });
    const i64 equals = team.sum(count, [=](i32 n) GIMBAL_LAMBDA { return i64{values[n] == greatest ? 1 : 0}; });
    sum += greatest * min_of(equals, left);
    left -= equals;
    limit = greatest;
  }
  return sum;
}

// No GPU can carry more than its `slots` heaviest experts; the total no more than every expert at its dearest GPU.
// Scratch: two arrays of [experts].
template <class Team>
GIMBAL_OVER_TEAM i64 worst_case(Team& team, const FineLayer& v, const FineWeights& w, i64* loads, i64* comms) {
  const i32 experts = v.experts;
  const u32* const compute_cost = v.compute_cost;
  const i64* const expert_tokens = v.expert_tokens;
  const i64* const comm = v.comm;
  const u32 compute = team.max(v.gpus, [=](i32 g) GIMBAL_LAMBDA { return compute_cost[g]; });
  const u32 load_weight = w.load;
  team.for_each(experts, [=](i32 e) GIMBAL_LAMBDA {
    loads[e] = mul_q31_wide(expert_tokens[e] * compute, load_weight);
    comms[e] = 0;
  });
  team.for_each3(1, v.gpus, experts, [=](i32, i32 g, i32 e) GIMBAL_LAMBDA {
    comms[e] = max_of(comms[e], comm[static_cast<i64>(g) * experts + e]);
  });
  const u32 total_weight = w.comm_total;
  const i64 total = team.sum(experts, [=](i32 e) GIMBAL_LAMBDA { return mul_q31_wide(comms[e], total_weight); });
  const u32 weight = max_of(w.comm_max, w.comm_total);
  team.sync();
  team.for_each(experts, [=](i32 e) GIMBAL_LAMBDA { comms[e] = mul_q31_wide(comms[e], weight); });
  return sum_of_greatest(team, loads, experts, v.slots) + sum_of_greatest(team, comms, experts, v.slots) + total;
}

// ---- search tables, `even`

// GPU g's rows of comm_t and, where GPUs differ, of load_t.
template <class Team>
GIMBAL_OVER_TEAM void fill_even_row(Team& team, const FineLayer& v, const FineWeights& w, const SearchScale& scale,
                               bool uniform, const SearchTables& t, i32 g) {
  const i64 at = static_cast<i64>(g) * v.experts;
  const i64* const fine = v.comm + at;
  i32* const comm = t.comm_t + at;
  const u32 comm_weight = scale.comm_weight;
  const int shift = scale.shift;
  team.for_each(v.experts, [=](i32 e) GIMBAL_LAMBDA { comm[e] = to_search(fine[e], comm_weight, shift); });
  if (uniform) return;
  const i64* const expert_tokens = v.expert_tokens;
  const i64 cost = v.compute_cost[g];
  i32* const load = t.load_t + at;
  const u32 load_weight = w.load;
  team.for_each(v.experts, [=](i32 e) GIMBAL_LAMBDA { load[e] = to_search(expert_tokens[e] * cost, load_weight, shift); });
}

// Experts [begin, end) of comm and load, once the rows are there.
template <class Team>
GIMBAL_OVER_TEAM void fill_even_experts(Team& team, const FineLayer& v, const FineWeights& w, const SearchScale& scale,
                                   bool uniform, const SearchTables& t, i32 begin, i32 end) {
  const i32 stride = padded_gpus(v.gpus);
  const i32 gpus = v.gpus;
  const i64 experts = v.experts;
  const SearchTables to = t;
  team.for_each2(end - begin, stride, [=](i32 n, i32 h) GIMBAL_LAMBDA {
    const i64 e = begin + n;
    to.comm[e * stride + h] = h < gpus ? to.comm_t[h * experts + e] : 0;
  });
  if (uniform) {
    const i64* const expert_tokens = v.expert_tokens;
    const i64 cost = v.compute_cost[0];
    const u32 load_weight = w.load;
    const int shift = scale.shift;
    team.for_each(end - begin, [=](i32 n) GIMBAL_LAMBDA {
      to.load[begin + n] = to_search(expert_tokens[begin + n] * cost, load_weight, shift);
    });
    return;
  }
  team.for_each2(end - begin, stride, [=](i32 n, i32 h) GIMBAL_LAMBDA {
    const i64 e = begin + n;
    to.load[e * stride + h] = h < gpus ? to.load_t[h * experts + e] : 0;
  });
}

// ---- search tables, `nearest`: sources stay apart; an expert's table entry is the sum of its sources' parts, so that one
// replica and many are priced by one rule.

// The factor of each GPU's compute cost.
template <class Team>
GIMBAL_OVER_TEAM void fill_nearest_factors(Team& team, const FineLayer& v, const SearchTables& t) {
  const u32* const cost = v.compute_cost;
  const i32 gpus = v.gpus;
  u32* const factor = t.compute_factor;
  const u32 most = team.max(gpus, [=](i32 g) GIMBAL_LAMBDA { return cost[g]; });
  team.for_each(padded_gpus(gpus), [=](i32 g) GIMBAL_LAMBDA { factor[g] = g < gpus ? ratio_q31(cost[g], most) : 0; });
}

// Source s's rows: distances, factors, and its experts' load and communication at the dearest GPU, which bounds the scale.
template <class Team>
GIMBAL_OVER_TEAM void fill_nearest_source(Team& team, const FineLayer& v, const FineWeights& w, const SearchScale& scale,
                                     const SearchTables& t, i32 s) {
  const i32 stride = padded_gpus(v.gpus);
  const i32 gpus = v.gpus;
  const u32* const compute_cost = v.compute_cost;
  const u32* const row = v.comm_cost + static_cast<i64>(s) * gpus;
  const i64 compute_most = team.max(gpus, [=](i32 g) GIMBAL_LAMBDA { return compute_cost[g]; });
  const u32 comm_most = team.max(gpus, [=](i32 g) GIMBAL_LAMBDA { return row[g]; });
  u32* const factor = t.comm_factor + static_cast<i64>(s) * stride;
  u32* const distance = t.distance + static_cast<i64>(s) * stride;
  team.for_each(stride, [=](i32 g) GIMBAL_LAMBDA {
    const u32 cost = g < gpus ? row[g] : 0;
    factor[g] = ratio_q31(cost, comm_most);
    distance[g] = cost;
  });
  const i64 at = static_cast<i64>(s) * v.experts;
  const u32* const tokens = v.tokens + at;
  i32* const load = t.source_load + at;
  i32* const comm = t.source_comm + at;
  const u32 load_weight = w.load;
  const u32 comm_weight = scale.comm_weight;
  const int shift = scale.shift;
  team.for_each(v.experts, [=](i32 e) GIMBAL_LAMBDA {
    const i64 n = tokens[e];
    load[e] = to_search(n * compute_most, load_weight, shift);
    comm[e] = to_search(n * comm_most, comm_weight, shift);
  });
}

// Experts [begin, end) of load and comm, and of their transposes, once the sources' rows are there.
template <class Team>
GIMBAL_OVER_TEAM void fill_nearest_experts(Team& team, const FineLayer& v, const SearchTables& t, i32 begin, i32 end) {
  const i32 stride = padded_gpus(v.gpus);
  const i32 gpus = v.gpus;
  const i64 experts = v.experts;
  const SearchTables to = t;
  team.for_each2(end - begin, stride, [=](i32 n, i32 h) GIMBAL_LAMBDA {
    to.load[i64{begin + n} * stride + h] = to.comm[i64{begin + n} * stride + h] = 0;
  });
  team.for_each3(end - begin, v.sources, stride, [=](i32 n, i32 s, i32 h) GIMBAL_LAMBDA {
    const i64 e = begin + n;
    to.load[e * stride + h] += mul_q31(to.source_load[s * experts + e], to.compute_factor[h]);
    to.comm[e * stride + h] += mul_q31(to.source_comm[s * experts + e], to.comm_factor[i64{s} * stride + h]);
  });
  team.for_each2(end - begin, gpus, [=](i32 n, i32 h) GIMBAL_LAMBDA {
    const i64 e = begin + n;
    to.load_t[h * experts + e] = to.load[e * stride + h];
    to.comm_t[h * experts + e] = to.comm[e * stride + h];
  });
}

// The search's view of a layer whose tables are filled; without an incumbent, which the caller adds.
GIMBAL_SPEC LayerView view_of(const FineLayer& fine, const SearchTables& t, const SearchScale& scale, bool uniform,
                              bool allow_duplicates) {
  LayerView v;
  v.experts = fine.experts;
  v.gpus = fine.gpus;
  v.stride = padded_gpus(fine.gpus);
  v.slots = fine.slots;
  v.sources = fine.sources;
  v.nearest = fine.nearest;
  v.uniform_compute = uniform;
  v.allow_duplicates = allow_duplicates;
  v.comm_term = scale.comm_term;
  v.max_scale = scale.max_scale;
  v.total_scale = scale.total_scale;
  v.load = t.load;
  v.load_t = t.load_t;
  v.comm = t.comm;
  v.comm_t = t.comm_t;
  v.source_load = t.source_load;
  v.source_comm = t.source_comm;
  v.compute_factor = t.compute_factor;
  v.comm_factor = t.comm_factor;
  v.distance = t.distance;
  return v;
}

}  // namespace spec
}  // namespace gimbal
