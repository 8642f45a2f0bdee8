// The start of a walk: replicate the heaviest experts, then place the heaviest shares first, each where load and
// communication grow least. Written over a Team, like the search that goes on from it.
#pragma once

#include "layer.h"
#include "order.h"
#include "random.h"
#include "units.h"

namespace gimbal {
namespace spec {

// What sets a walker's start apart from its fellows'.
struct StartVariant {
  i32 affinity_quarters = 2;  // extra weight of a GPU's own communication cost when a share is placed
  bool jitter = false;        // up to an eighth more on each expert's weight, at random
};

GIMBAL_SPEC StartVariant start_variant(i32 walker) {
  StartVariant variant;
  const i32 kinds = walker & 3;
  variant.affinity_quarters = kinds == 0 ? 2 : kinds == 1 ? 0 : kinds == 2 ? 6 : 12;
  variant.jitter = walker >= 4;
  return variant;
}

template <class Team>
class Construct {
 public:
  GIMBAL_OVER_TEAM Construct(Team& team, const LayerView& view, const Walker& walker)
      : team_(team), v_(view), w_(walker) {}

  // Fills w.expert and w.replicas. Uses the walker's other arrays as scratch.
  GIMBAL_OVER_TEAM void run(StartVariant variant, u64 key) {
    weigh(variant, key);
    team_.for_each(v_.experts, [w = w_](i32 e) GIMBAL_LAMBDA { w.replicas[e] = 1; });
    // One decision after the other, each over few candidates: no work for many threads.
    team_.solo([&](auto& one) GIMBAL_LAMBDA { replicate(one); });
    clear();
    order_by_share();
    team_.solo([&](auto& one) GIMBAL_LAMBDA { pack(one, variant); });
  }

 private:
  // An expert's weight: its load and its mean communication, in one unit.
  GIMBAL_OVER_TEAM void weigh(StartVariant variant, u64 key) {
    const LayerView v = v_;
    const Walker w = w_;
    i32* const weight = w.home;
    team_.for_each(v.experts, [=](i32 e) GIMBAL_LAMBDA {
      i64 sum = 0;
      GIMBAL_UNROLLED
      for (i32 h = 0; h < v.gpus; ++h) {
        sum += v.uniform_compute ? v.load[e] : v.load[e * v.stride + h];
        if (v.comm_term != CommTerm::kAbsent) sum += v.comm[e * v.stride + h];
      }
      const i32 mean = static_cast<i32>(sum / v.gpus);
      weight[e] = mean;
      if (variant.jitter) weight[e] += mul_q31(mean / 8, static_cast<u32>(draw(key, static_cast<u64>(e)) >> 33));
    });
  }

  // One more replica for the expert whose replicas weigh most, until every slot has one.
  template <class One>
  GIMBAL_OVER_TEAM void replicate(One& one) {
    const LayerView v = v_;
    const Walker w = w_;
    const i32 most = v.allow_duplicates ? v.slots * v.gpus : v.gpus;
    for (i32 n = v.experts; n < v.slots * v.gpus; ++n) {
      const Best heaviest = one.argmin(v.experts, [=](i32 e) GIMBAL_LAMBDA {
        return w.replicas[e] < most ? -mul_q31(w.home[e], share_q31(w.replicas[e])) : 1;
      });
      one.single([=]() GIMBAL_LAMBDA { ++w.replicas[heaviest.index]; });
    }
  }

  // No slot holds anything.
  GIMBAL_OVER_TEAM void clear() {
    const LayerView v = v_;
    const Walker w = w_;
    i32* const filled = w.gpu_new;
    team_.for_each(v.stride, [=](i32 h) GIMBAL_LAMBDA {
      w.gpu_load[h] = w.gpu_comm[h] = filled[h] = 0;
      GIMBAL_ROLLED
      for (i32 k = 0; k < v.slots; ++k) w.expert[k * v.stride + h] = h < v.gpus ? -1 : 0;
    });
    team_.for_each(v.experts * v.stride, [=](i32 i) GIMBAL_LAMBDA { w.copies[i] = 0; });
  }

  template <class One>
  GIMBAL_OVER_TEAM void pack(One& one, StartVariant variant) {
    const LayerView v = v_;
    const Walker w = w_;
    GIMBAL_ROLLED
    for (i32 n = 0; n < v.experts; ++n) {
      const i32 e = w.focus_comm[n];
      const i32 replicas = w.replicas[e];
      const u32 share = share_q31(replicas);
      GIMBAL_ROLLED
      for (i32 replica = 0; replica < replicas; ++replica) {
        const Best spot = cheapest_gpu(one, e, share, variant);
        one.single([=]() GIMBAL_LAMBDA {
          if (spot.score < kBarred) {
            put(v, w, e, spot.index, w.move_load[spot.index], w.move_comm[spot.index]);
          } else {
            make_room(v, w, e);
          }
        });
      }
    }
  }

  // Writes the experts by falling share to focus_comm, equals by id: each counts who comes before it.
  GIMBAL_OVER_TEAM void order_by_share() {
    const LayerView v = v_;
    const Walker w = w_;
    i32* const share = w.focus_load;
    i32* const order = w.focus_comm;
    team_.for_each(v.experts, [=](i32 e) GIMBAL_LAMBDA { share[e] = mul_q31(w.home[e], share_q31(w.replicas[e])); });
    team_.for_each(v.experts, [=](i32 e) GIMBAL_LAMBDA {
      const i32 own = share[e];
      i32 before = 0;
      GIMBAL_UNROLLED
      for (i32 x = 0; x < v.experts; ++x) before += share[x] + (x < e ? 1 : 0) > own ? 1 : 0;
      order[before] = e;
    });
  }

  template <class One>
  GIMBAL_OVER_TEAM Best cheapest_gpu(One& one, i32 e, u32 share, StartVariant variant) {
    const LayerView v = v_;
    const Walker w = w_;
    const bool has_comm = v.comm_term != CommTerm::kAbsent;
    const i32 quarters = 4 + variant.affinity_quarters;
    return one.argmin(v.gpus, [=](i32 h) GIMBAL_LAMBDA {
      const i32 comm = mul_q31(v.comm[e * v.stride + h], share);
      const i32 load = mul_q31(v.uniform_compute ? v.load[e] : v.load[e * v.stride + h], share);
      w.move_load[h] = load;
      w.move_comm[h] = comm;
      if (w.gpu_new[h] >= v.slots) return 2 * kBarred - 1;
      if (!v.allow_duplicates && w.copies[e * v.stride + h] > 0) return 2 * kBarred - 1;
      const i32 fresh = v.held != nullptr && v.held[e * v.stride + h] == 0 ? v.price : 0;
      return w.gpu_load[h] + load + (has_comm ? w.gpu_comm[h] : 0) + comm / 4 * quarters + fresh;
    });
  }

  GIMBAL_OVER_TEAM static void put(const LayerView& v, const Walker& w, i32 e, i32 h, i32 load, i32 comm) {
    w.expert[w.gpu_new[h]++ * v.stride + h] = e;
    ++w.copies[e * v.stride + h];
    w.gpu_load[h] += load;
    w.gpu_comm[h] += comm;
  }

  GIMBAL_OVER_TEAM static void place(const LayerView& v, const Walker& w, i32 e, i32 h) {
    const u32 share = share_q31(w.replicas[e]);
    put(v, w, e, h, mul_q31(v.uniform_compute ? v.load[e] : v.load[e * v.stride + h], share),
        mul_q31(v.comm[e * v.stride + h], share));
  }

  // Every GPU with a free slot holds e already: move some expert f of a full GPU without e to the free slot, and put e
  // in its place. One exists: the full GPU has more distinct experts than the one with room.
  GIMBAL_OVER_TEAM static void make_room(const LayerView& v, const Walker& w, i32 e) {
    GIMBAL_ROLLED
    for (i32 h = 0; h < v.gpus; ++h) {
      if (w.gpu_new[h] >= v.slots) continue;
      GIMBAL_ROLLED
      for (i32 g = 0; g < v.gpus; ++g) {
        if (w.copies[e * v.stride + g] > 0) continue;
        GIMBAL_ROLLED
        for (i32 k = 0; k < v.slots; ++k) {
          const i32 f = w.expert[k * v.stride + g];
          if (f < 0 || w.copies[f * v.stride + h] > 0) continue;
          const u32 share = share_q31(w.replicas[f]);
          --w.copies[f * v.stride + g];
          --w.gpu_new[g];
          w.gpu_load[g] -= mul_q31(v.uniform_compute ? v.load[f] : v.load[f * v.stride + g], share);
          w.gpu_comm[g] -= mul_q31(v.comm[f * v.stride + g], share);
          w.expert[k * v.stride + g] = w.expert[w.gpu_new[g] * v.stride + g];
          w.expert[w.gpu_new[g] * v.stride + g] = -1;
          place(v, w, f, h);
          place(v, w, e, g);
          return;
        }
      }
    }
  }

  Team& team_;
  const LayerView& v_;
  const Walker& w_;
};

}  // namespace spec
}  // namespace gimbal
