// The objective itself, in fine integers. What a plan reports and how walkers are ranked comes from here.
#pragma once

#include "types.h"
#include "units.h"

namespace gimbal {
namespace spec {

GIMBAL_SPEC i64 fine_objective(const FineWeights& w, const FineTerms& t) {
  return mul_q31_wide(t.load_max, w.load) + mul_q31_wide(t.comm_max, w.comm_max) +
         mul_q31_wide(t.comm_total, w.comm_total) + w.migration * t.migrations;
}

// The terms of a placement whose loads and communication stand in load [gpus] and comm [gpus].
template <class Team>
GIMBAL_OVER_TEAM FineTerms fine_terms_of(Team& team, i32 gpus, const i64* load, const i64* comm) {
  FineTerms t;
  t.load_max = team.max(gpus, [=](i32 g) GIMBAL_LAMBDA { return load[g]; });
  t.comm_max = team.max(gpus, [=](i32 g) GIMBAL_LAMBDA { return comm[g]; });
  t.comm_total = team.sum(gpus, [=](i32 g) GIMBAL_LAMBDA { return comm[g]; });
  return t;
}

// How often each expert stands in `expert` [cells], into replicas [experts].
template <class Team>
GIMBAL_OVER_TEAM void count_replicas(Team& team, i32 experts, i32 cells, const i32* expert, i32* replicas) {
  team.for_each(experts, [=](i32 e) GIMBAL_LAMBDA { replicas[e] = 0; });
  team.tally(cells, expert, replicas);
}

// The terms of a placement, `expert` as [gpus][slots] of logical experts; every expert has a replica.
// replicas [experts] as counted above. Scratch: load and comm [gpus].
template <class Team>
GIMBAL_OVER_TEAM FineTerms fine_terms_even(Team& team, const FineLayer& layer, const i32* expert, const i32* replicas,
                                      i64* load, i64* comm) {
  const FineLayer v = layer;
  team.for_each(v.gpus, [=](i32 g) GIMBAL_LAMBDA {
    i64 load_g = 0, comm_g = 0;
    const i64* const row = v.comm + static_cast<i64>(g) * v.experts;
    for (i32 k = 0; k < v.slots; ++k) {
      const i32 e = expert[g * v.slots + k];
      const i32 n = replicas[e];
      const i64 all_load = v.expert_tokens[e] * v.compute_cost[g];
      const i64 all_comm = row[e];
      if (Team::kSkipsPay && n == 1) {
        load_g += all_load;
        comm_g += all_comm;
        continue;
      }
      const FineShare share(n);
      load_g += share.of(all_load);
      comm_g += share.of(all_comm);
    }
    load[g] = load_g;
    comm[g] = comm_g;
  });
  return fine_terms_of(team, v.gpus, load, comm);
}

// `nearest`: each source's tokens go to the replicas with the least comm_cost, evenly among ties.
// Scratch: load and comm [gpus], hosts [gpus * slots] (the slots grouped by expert) and first [experts + 1].
template <class Team>
GIMBAL_OVER_TEAM FineTerms fine_terms_nearest(Team& team, const FineLayer& layer, const i32* expert, i32* first, i32* hosts,
                                         i64* load, i64* comm) {
  const FineLayer v = layer;
  const i32 cells = v.gpus * v.slots;
  const Divisor by_slots(v.slots);
  team.for_each(v.experts + 1, [=](i32 e) GIMBAL_LAMBDA { first[e] = 0; });
  team.for_each_shared(cells, [=](i32 m) GIMBAL_LAMBDA { Team::add(&first[expert[m] + 1], 1); });
  team.single([=]() GIMBAL_LAMBDA {
    for (i32 e = 0; e < v.experts; ++e) first[e + 1] += first[e];
  });
  team.for_each_shared(cells, [=](i32 m) GIMBAL_LAMBDA { hosts[Team::add(&first[expert[m]], 1)] = by_slots.into(m); });
  team.for_each(v.gpus, [=](i32 g) GIMBAL_LAMBDA { load[g] = comm[g] = 0; });
  team.for_each_shared(v.experts * v.sources, [=](i32 n) GIMBAL_LAMBDA {
    const i32 e = n / v.sources;
    const i32 s = n - e * v.sources;
    const u64 tokens = v.tokens[static_cast<i64>(s) * v.experts + e];
    if (tokens == 0) return;
    const i32 begin = e == 0 ? 0 : first[e - 1];
    const i32 end = first[e];
    const u32* const cost = v.comm_cost + static_cast<i64>(s) * v.gpus;
    u32 least = cost[hosts[begin]];
    i32 ties = 0;
    for (i32 x = begin; x < end; ++x) {
      const u32 c = cost[hosts[x]];
      if (c < least) {
        least = c;
        ties = 0;
      }
      ties += c == least ? 1 : 0;
    }
    const i64 comm_share = fine_share(static_cast<i64>(tokens * least), ties);
    for (i32 x = begin; x < end; ++x) {
      const i32 g = hosts[x];
      if (cost[g] != least) continue;
      Team::add(&load[g], fine_share(static_cast<i64>(tokens * v.compute_cost[g]), ties));
      Team::add(&comm[g], comm_share);
    }
  });
  return fine_terms_of(team, v.gpus, load, comm);
}

// Distinct (expert, GPU) pairs of a placement [gpus][slots] that the incumbent's `held` [experts][stride] lacks.
template <class Team>
GIMBAL_OVER_TEAM i64 count_new_pairs(Team& team, i32 gpus, i32 slots, const u8* held, const i32* expert) {
  const i32 stride = padded_gpus(gpus);
  const Divisor by_slots(slots);
  return team.sum(gpus * slots, [=](i32 m) GIMBAL_LAMBDA {
    const i32 g = by_slots.into(m);
    const i32 e = expert[m];
    if (held[static_cast<i64>(e) * stride + g] != 0) return i64{0};
    for (i32 before = g * slots; before < m; ++before) {
      if (expert[before] == e) return i64{0};
    }
    return i64{1};
  });
}

// Whether each expert has a replica.
template <class Team>
GIMBAL_OVER_TEAM bool all_have_replicas(Team& team, i32 experts, const i32* replicas) {
  return team.max(experts, [=](i32 e) GIMBAL_LAMBDA { return replicas[e] == 0 ? 1 : 0; }) == 0;
}

// Copies a candidate [all_gpus][slots] to `live` [gpus][slots], and counts its replicas [experts]. Returns -1, or the first
// slot at fault: an id out of range on a live GPU, anything but -1 on a dead one; slot 0 where every slot is right and an
// expert has none.
template <class Team>
GIMBAL_OVER_TEAM i32 read_candidate(Team& team, i32 experts, i32 slots, const LiveGpus& which, const i32* candidate,
                               i32* live, i32* replicas) {
  const i32* const live_index = which.live_index;
  const i32 all_slots = which.all_gpus * slots;
  const u32 ids = static_cast<u32>(experts);
  if (live_index == nullptr) {
    team.copy(all_slots, candidate, live);
    const i32 from_end = team.max(all_slots, [=](i32 m) GIMBAL_LAMBDA {  // how far the first at fault is from the end
      return static_cast<u32>(live[m]) < ids ? 0 : all_slots - m;
    });
    if (from_end > 0) return all_slots - from_end;
    count_replicas(team, experts, all_slots, live, replicas);
    return all_have_replicas(team, experts, replicas) ? -1 : 0;
  }
  const Divisor by_slots(slots);
  const i32 from_end = team.max(all_slots, [=](i32 m) GIMBAL_LAMBDA {
    const i32 e = candidate[m];
    const bool dead = live_index[by_slots.into(m)] < 0;
    return (dead ? e == -1 : static_cast<u32>(e) < ids) ? 0 : all_slots - m;
  });
  if (from_end > 0) return all_slots - from_end;
  team.for_each(experts, [=](i32 e) GIMBAL_LAMBDA { replicas[e] = 0; });
  team.for_each_shared(all_slots, [=](i32 m) GIMBAL_LAMBDA {
    const i32 g = by_slots.into(m);
    if (live_index[g] < 0) return;
    live[live_index[g] * slots + (m - g * slots)] = candidate[m];
    Team::add(&replicas[candidate[m]], 1);
  });
  return all_have_replicas(team, experts, replicas) ? -1 : 0;
}

}  // namespace spec
}  // namespace gimbal
