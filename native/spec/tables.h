// From counts and costs to one layer's tables: the fine table A[gpu][expert] = sum over sources of tokens * comm_cost, and
// the search's 32-bit image of it. Plain loops over arrays: every backend fills the same integers.
#pragma once

#include "cost.h"
#include "layer.h"
#include "table_types.h"
#include "units.h"

// The loops below never alias; saying so lets compilers vectorise them without run-time checks.
#if defined(__clang__)
#define GIMBAL_VECTOR_LOOP _Pragma("clang loop vectorize(enable)")
#elif defined(__GNUC__)
#define GIMBAL_VECTOR_LOOP _Pragma("GCC ivdep")
#else
#define GIMBAL_VECTOR_LOOP
#endif

namespace gimbal {
namespace spec {

// Fills expert_tokens [experts] and comm [gpus][experts]. Scratch: base [experts].
GIMBAL_SPEC void fill_fine_tables(const FineLayer& v, const CostPattern& pattern, i64* expert_tokens, i64* comm,
                                  i64* base) {
  const i32 experts = v.experts;
  for (i32 e = 0; e < experts; ++e) expert_tokens[e] = base[e] = 0;
  for (i32 s = 0; s < v.sources; ++s) {
    const u32* tokens = v.tokens + static_cast<i64>(s) * experts;
    const u32 cost = pattern.base[s];
    GIMBAL_VECTOR_LOOP
    for (i32 e = 0; e < experts; ++e) {
      expert_tokens[e] += tokens[e];
      base[e] += static_cast<i64>(static_cast<u64>(tokens[e]) * cost);
    }
  }
  for (i32 g = 0; g < v.gpus; ++g) {
    i64* row = comm + static_cast<i64>(g) * experts;
    for (i32 e = 0; e < experts; ++e) row[e] = base[e];
    for (i32 n = pattern.first[g]; n < pattern.first[g + 1]; ++n) {
      const u32* tokens = v.tokens + static_cast<i64>(pattern.source[n]) * experts;
      const u32 cost = pattern.magnitude[n];
      if (pattern.below[n]) {
        GIMBAL_VECTOR_LOOP
        for (i32 e = 0; e < experts; ++e) row[e] -= static_cast<i64>(static_cast<u64>(tokens[e]) * cost);
      } else {
        GIMBAL_VECTOR_LOOP
        for (i32 e = 0; e < experts; ++e) row[e] += static_cast<i64>(static_cast<u64>(tokens[e]) * cost);
      }
    }
  }
}

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

// The sum of the `slots` greatest of values [count]; values is reordered.
GIMBAL_SPEC_LONG i64 sum_of_greatest(i64* values, i32 count, i32 slots) {
  if (slots < count) {
    // Quickselect with the middle as pivot: linear for the shapes met here, and free of library calls.
    i32 low = 0, high = count - 1;
    while (low < high) {
      const i64 pivot = values[(low + high) / 2];
      i32 i = low, j = high;
      while (i <= j) {
        while (values[i] > pivot) ++i;
        while (values[j] < pivot) --j;
        if (i <= j) {
          const i64 t = values[i];
          values[i] = values[j];
          values[j] = t;
          ++i;
          --j;
        }
      }
      if (slots - 1 <= j) {
        high = j;
      } else if (slots - 1 >= i) {
        low = i;
      } else {
        break;
      }
    }
  }
  i64 sum = 0;
  for (i32 n = 0; n < count && n < slots; ++n) sum += values[n];
  return sum;
}

// No GPU can carry more than its `slots` heaviest experts; the total no more than every expert at its dearest GPU.
// Scratch: two arrays of [experts].
GIMBAL_SPEC_LONG i64 worst_case(const FineLayer& v, const FineWeights& w, i64* loads, i64* comms) {
  u32 compute = 0;
  for (i32 g = 0; g < v.gpus; ++g) compute = max_of(compute, v.compute_cost[g]);
  for (i32 e = 0; e < v.experts; ++e) {
    loads[e] = mul_q31_wide(v.expert_tokens[e] * compute, w.load);
    comms[e] = 0;
  }
  for (i32 g = 0; g < v.gpus; ++g) {
    const i64* row = v.comm + static_cast<i64>(g) * v.experts;
    GIMBAL_VECTOR_LOOP
    for (i32 e = 0; e < v.experts; ++e) comms[e] = max_of(comms[e], row[e]);
  }
  i64 total = 0;
  const u32 weight = max_of(w.comm_max, w.comm_total);
  for (i32 e = 0; e < v.experts; ++e) {
    total += mul_q31_wide(comms[e], w.comm_total);
    comms[e] = mul_q31_wide(comms[e], weight);
  }
  return sum_of_greatest(loads, v.experts, v.slots) + sum_of_greatest(comms, v.experts, v.slots) + total;
}

GIMBAL_SPEC void fill_even_tables(const FineLayer& v, const FineWeights& w, const SearchScale& scale, bool uniform,
                                  const SearchTables& t) {
  const i32 stride = padded_gpus(v.gpus);
  const i32 experts = v.experts;
  for (i32 g = 0; g < v.gpus; ++g) {
    const i64* fine = v.comm + static_cast<i64>(g) * experts;
    i32* row = t.comm_t + static_cast<i64>(g) * experts;
    GIMBAL_VECTOR_LOOP
    for (i32 e = 0; e < experts; ++e) row[e] = to_search(fine[e], scale.comm_weight, scale.shift);
  }
  for (i32 e = 0; e < experts; ++e) {
    i32* row = t.comm + static_cast<i64>(e) * stride;
    for (i32 g = 0; g < v.gpus; ++g) row[g] = t.comm_t[static_cast<i64>(g) * experts + e];
    for (i32 g = v.gpus; g < stride; ++g) row[g] = 0;
  }
  if (uniform) {
    for (i32 e = 0; e < experts; ++e) {
      t.load[e] = to_search(v.expert_tokens[e] * v.compute_cost[0], w.load, scale.shift);
    }
    return;
  }
  for (i32 e = 0; e < experts; ++e) {
    for (i32 g = 0; g < stride; ++g) {
      const i32 x =
          g < v.gpus ? to_search(v.expert_tokens[e] * v.compute_cost[g], w.load, scale.shift) : 0;
      t.load[static_cast<i64>(e) * stride + g] = x;
      if (g < v.gpus) t.load_t[static_cast<i64>(g) * experts + e] = x;
    }
  }
}

// `nearest` keeps sources apart; an expert's table entry is the sum of its sources' parts, so that one replica and many
// are priced by one rule.
GIMBAL_SPEC void fill_nearest_tables(const FineLayer& v, const FineWeights& w, const SearchScale& scale,
                                     const SearchTables& t) {
  const i32 stride = padded_gpus(v.gpus);
  const i32 experts = v.experts;
  u32 compute_most = 0;
  for (i32 g = 0; g < v.gpus; ++g) compute_most = max_of(compute_most, v.compute_cost[g]);
  for (i32 g = 0; g < stride; ++g) {
    t.compute_factor[g] = g < v.gpus ? ratio_q31(v.compute_cost[g], compute_most) : 0;
  }
  for (i32 s = 0; s < v.sources; ++s) {
    u32 comm_most = 0;  // of this source: no part exceeds the expert's dearest GPU, which bounds the scale
    for (i32 g = 0; g < v.gpus; ++g) comm_most = max_of(comm_most, v.comm_cost[static_cast<i64>(s) * v.gpus + g]);
    for (i32 g = 0; g < stride; ++g) {
      const u32 cost = g < v.gpus ? v.comm_cost[static_cast<i64>(s) * v.gpus + g] : 0;
      t.comm_factor[static_cast<i64>(s) * stride + g] = ratio_q31(cost, comm_most);
      t.distance[static_cast<i64>(s) * stride + g] = cost;
    }
    for (i32 e = 0; e < experts; ++e) {
      const i64 at = static_cast<i64>(s) * experts + e;
      const i64 tokens = v.tokens[at];
      t.source_load[at] = to_search(tokens * compute_most, w.load, scale.shift);
      t.source_comm[at] = to_search(tokens * comm_most, scale.comm_weight, scale.shift);
    }
  }
  for (i32 e = 0; e < experts; ++e) {
    i32* load = t.load + static_cast<i64>(e) * stride;
    i32* comm = t.comm + static_cast<i64>(e) * stride;
    for (i32 g = 0; g < stride; ++g) load[g] = comm[g] = 0;
    for (i32 s = 0; s < v.sources; ++s) {
      const i32 source_load = t.source_load[static_cast<i64>(s) * experts + e];
      const i32 source_comm = t.source_comm[static_cast<i64>(s) * experts + e];
      const u32* factor = t.comm_factor + static_cast<i64>(s) * stride;
      GIMBAL_VECTOR_LOOP
      for (i32 g = 0; g < stride; ++g) {
        load[g] += mul_q31(source_load, t.compute_factor[g]);
        comm[g] += mul_q31(source_comm, factor[g]);
      }
    }
    for (i32 g = 0; g < v.gpus; ++g) {
      t.load_t[static_cast<i64>(g) * experts + e] = load[g];
      t.comm_t[static_cast<i64>(g) * experts + e] = comm[g];
    }
  }
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
