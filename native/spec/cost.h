// The objective itself, in fine integers. What a plan reports and how walkers are ranked comes from here.
#pragma once

#include "units.h"

namespace gimbal {
namespace spec {

// One layer's exact inputs; GPUs are the live ones, renumbered from 0.
struct FineLayer {
  i32 experts = 0;
  i32 gpus = 0;
  i32 slots = 0;  // per GPU
  i32 sources = 0;
  bool nearest = false;
  const u32* tokens = nullptr;        // [sources][experts]
  const u32* compute_cost = nullptr;  // [gpus]
  const u32* comm_cost = nullptr;     // [sources][gpus]
  const i64* expert_tokens = nullptr;  // [experts]: tokens summed over the sources
  const i64* comm = nullptr;           // [gpus][experts]: sum over sources of tokens * comm_cost
};

// The weights of J relative to the greatest of them, Q31; the migration price is in units of J already.
struct FineWeights {
  u32 load = 0;
  u32 comm_max = 0;
  u32 comm_total = 0;  // of the sum over GPUs: the caller's weight divided by the number of GPUs
  i64 migration = 0;   // per new (expert, GPU) pair
};

struct FineTerms {
  i64 load_max = 0;
  i64 comm_max = 0;
  i64 comm_total = 0;
  i64 migrations = 0;
};

GIMBAL_SPEC i64 fine_objective(const FineWeights& w, const FineTerms& t) {
  return mul_q31_wide(t.load_max, w.load) + mul_q31_wide(t.comm_max, w.comm_max) +
         mul_q31_wide(t.comm_total, w.comm_total) + w.migration * t.migrations;
}

// The terms of a placement, `expert` as [gpus][slots] of logical experts; every expert has a replica.
// Scratch: replicas [experts], load and comm [gpus].
GIMBAL_SPEC FineTerms fine_terms_even(const FineLayer& v, const i32* expert, i32* replicas, i64* load, i64* comm) {
  for (i32 e = 0; e < v.experts; ++e) replicas[e] = 0;
  const i32 cells = v.gpus * v.slots;
  for (i32 m = 0; m < cells; ++m) ++replicas[expert[m]];
  FineTerms t;
  for (i32 g = 0; g < v.gpus; ++g) {
    i64 load_g = 0, comm_g = 0;
    for (i32 k = 0; k < v.slots; ++k) {
      const i32 e = expert[g * v.slots + k];
      load_g += fine_share(v.expert_tokens[e] * v.compute_cost[g], replicas[e]);
      comm_g += fine_share(v.comm[static_cast<i64>(g) * v.experts + e], replicas[e]);
    }
    load[g] = load_g;
    comm[g] = comm_g;
    t.load_max = max_of(t.load_max, load_g);
    t.comm_max = max_of(t.comm_max, comm_g);
    t.comm_total += comm_g;
  }
  return t;
}

// `nearest`: each source's tokens go to the replicas with the least comm_cost, evenly among ties.
// Scratch as above, plus hosts [gpus * slots] (the slots grouped by expert) and first [experts + 1].
GIMBAL_SPEC FineTerms fine_terms_nearest(const FineLayer& v, const i32* expert, i32* first, i32* hosts, i64* load,
                                         i64* comm) {
  const i32 cells = v.gpus * v.slots;
  for (i32 e = 0; e <= v.experts; ++e) first[e] = 0;
  for (i32 m = 0; m < cells; ++m) ++first[expert[m] + 1];
  for (i32 e = 0; e < v.experts; ++e) first[e + 1] += first[e];
  for (i32 m = 0; m < cells; ++m) hosts[first[expert[m]]++] = m / v.slots;
  for (i32 g = 0; g < v.gpus; ++g) load[g] = comm[g] = 0;
  for (i32 e = 0; e < v.experts; ++e) {
    const i32 begin = e == 0 ? 0 : first[e - 1];
    const i32 end = first[e];
    for (i32 s = 0; s < v.sources; ++s) {
      const u64 tokens = v.tokens[static_cast<i64>(s) * v.experts + e];
      if (tokens == 0) continue;
      const u32* cost = v.comm_cost + static_cast<i64>(s) * v.gpus;
      u32 least = cost[hosts[begin]];
      i32 ties = 0;
      for (i32 n = begin; n < end; ++n) {
        const u32 c = cost[hosts[n]];
        if (c < least) {
          least = c;
          ties = 0;
        }
        ties += c == least ? 1 : 0;
      }
      const i64 comm_share = fine_share(static_cast<i64>(tokens * least), ties);
      for (i32 n = begin; n < end; ++n) {
        const i32 g = hosts[n];
        if (cost[g] != least) continue;
        load[g] += fine_share(static_cast<i64>(tokens * v.compute_cost[g]), ties);
        comm[g] += comm_share;
      }
    }
  }
  FineTerms t;
  for (i32 g = 0; g < v.gpus; ++g) {
    t.load_max = max_of(t.load_max, load[g]);
    t.comm_max = max_of(t.comm_max, comm[g]);
    t.comm_total += comm[g];
  }
  return t;
}

}  // namespace spec
}  // namespace gimbal
