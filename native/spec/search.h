// The search: a rejection-free annealer over placements, written once over a Team of a few primitives.
//
// Each step looks at one focus GPU g - the busiest in load, the busiest in communication, or a random one - and scores at
// once every swap of one of g's experts with any slot elsewhere, or every expert that could take the place of a redundant
// replica on g. Exponential noise, scaled by a falling temperature, is added to each score; the least wins, and staying
// put is one of the candidates. Scores are the objective's exact change plus a convex potential of the touched GPUs'
// load and communication, which tells apart the many swaps that leave the maximum where it is.
//
// Everything is integer and every choice a total order, so a Team may evaluate in any order: a CPU core with its vectors
// (solver/cpu/team_cpu.h) and a block of GPU threads give the same placement.
#pragma once

#include "layer.h"
#include "order.h"
#include "potential.h"
#include "random.h"
#include "units.h"

namespace gimbal {
namespace spec {

// The walk's length in steps is rounds * steps_per_round: half of a round goes to the busiest GPUs, and in the other half
// every GPU is the focus about once.
// Whole temperatures, so that a walk may pause after any round and go on as if it had not.
constexpr i32 kLeastStepsPerRound = 32;
GIMBAL_SPEC i32 steps_per_round(i32 gpus) { return (max_of(2 * gpus, kLeastStepsPerRound) + 7) / 8 * 8; }

// The temperature starts near what moving one slot's share changes, a fraction of the objective that falls with the square
// of the slots on a GPU, and falls by 2^8; it is renewed every few steps.
constexpr i32 kHotDivisor = 6;
constexpr i32 kCoolingOctaves = 8;
constexpr i32 kStepsPerTemperature = 8;
constexpr i32 kFadingOctave = 6;
// Experts looked at in place of a redundant replica, one step in four.
constexpr i32 kReplaceEvery = 4;
// `nearest`: changes of replicated experts tried in a step; each costs O(sources).
constexpr i32 kNearestProbes = 6;

// With a budget: the extra price of a new pair, falling geometrically from `dearest` to `cheapest` over a walk.
GIMBAL_SPEC i32 extra_price_at(i32 dearest, i32 cheapest, i64 step, i64 total) {
  if (dearest <= cheapest) return cheapest;
  const i64 octaves = log2_q16(static_cast<u64>(dearest)) - log2_q16(static_cast<u64>(max_of(cheapest, 1)));
  const i64 fallen = octaves * step / max_of<i64>(total, 1);
  const i64 base = dearest >> (fallen >> 16);
  return max_of(static_cast<i32>(base - ((base * (fallen & 0xFFFF)) >> 17)), cheapest);
}

template <class Team>
class Search {
 public:
  GIMBAL_OVER_TEAM Search(Team& team, const LayerView& view, const Walker& walker, u64 key, Temper temper)
      : team_(team), v_(view), w_(walker), key_(key), temper_(temper), price_(view.price) {}

  // Takes the placement in w.expert, which becomes the best so far.
  GIMBAL_OVER_TEAM void start(Potential* load_potential, Potential* comm_potential) {
    take_over();
    load_potential_ = potential_for(sum_of(w_.gpu_load), v_.gpus);
    comm_potential_ = v_.comm_term == CommTerm::kAbsent ? Potential() : potential_for(sum_of(w_.gpu_comm), v_.gpus);
    *load_potential = load_potential_;
    *comm_potential = comm_potential_;
    load_base_shift_ = load_potential_.shift;
    comm_base_shift_ = comm_potential_.shift;
    best_value_ = value_;
    keep(w_.best_expert);
    record_frontier();
  }

  // Goes on from the placement in w.expert where an earlier Search left off.
  GIMBAL_OVER_TEAM void resume(Potential load_potential, Potential comm_potential, i64 best_value) {
    take_over();
    load_potential_ = load_potential;
    comm_potential_ = comm_potential;
    load_base_shift_ = load_potential_.shift;
    comm_base_shift_ = comm_potential_.shift;
    best_value_ = best_value;
  }

  // Steps [begin, end) of a walk of `total` steps. Returns false where `stop` said to stop.
  template <class Stop>
  GIMBAL_OVER_TEAM bool walk(i64 begin, i64 end, i64 total, Stop stop) {
    for (i64 step = begin; step < end; ++step) {
      if (stop()) return false;
      if (best_value_ == 0) return true;  // nothing costs less than nothing
      if (step % kStepsPerTemperature == 0) cool(step, total);
      take_step(step);
    }
    return true;
  }

  // The price of a new pair while the walk goes on: the problem's own plus `extra`, which a migration budget sets.
  GIMBAL_OVER_TEAM void set_extra_price(i32 extra) {
    const i32 price = static_cast<i32>(min_of<i64>(i64{v_.price} + extra, i64{1} << kSearchBits));
    if (price == price_) return;
    price_ = price;
    reprice();
    measure();
  }

  GIMBAL_OVER_TEAM i64 best_value() const { return best_value_; }

 private:
  // Counts and prices the placement in w.expert from scratch.
  GIMBAL_OVER_TEAM void take_over() {
    const LayerView v = v_;
    const Walker w = w_;
    team_.for_each(v.experts * v.stride, [=](i32 i) GIMBAL_LAMBDA { w.copies[i] = 0; });
    team_.for_each(v.experts, [=](i32 e) GIMBAL_LAMBDA {
      w.replicas[e] = 0;
      w.barred[e] = 0;
    });
    team_.for_each_shared(v.slots * v.gpus, [=](i32 i) GIMBAL_LAMBDA {
      const i32 k = i / v.gpus;
      Team::add(&w.replicas[w.expert[k * v.stride + i - k * v.gpus]], 1);
    });
    team_.for_each_shared(v.gpus, [=](i32 h) GIMBAL_LAMBDA {
      GIMBAL_ROLLED
      for (i32 k = 0; k < v.slots; ++k) {
        const i32 e = w.expert[k * v.stride + h];
        ++w.copies[e * v.stride + h];
        if (w.replicas[e] == 1) w.home[e] = h;
      }
    });
    reprice();
    measure();
  }

  GIMBAL_OVER_TEAM i64 sum_of(const i32* per_gpu) {
    return team_.sum(v_.gpus, [=](i32 h) GIMBAL_LAMBDA { return per_gpu[h]; });
  }

  // ---- prices of one replica

  GIMBAL_OVER_TEAM static i32 load_of(const LayerView& v, i32 e, i32 h) {
    return v.uniform_compute ? v.load[e] : v.load[e * v.stride + h];
  }

  GIMBAL_OVER_TEAM static bool is_new(const LayerView& v, i32 e, i32 h) {
    return v.held != nullptr && v.held[e * v.stride + h] == 0;
  }

  // Copies of e that GPU h may hold: one, or as many as the incumbent has there.
  GIMBAL_OVER_TEAM static i32 room(const LayerView& v, i32 e, i32 h) {
    if (v.allow_duplicates) return 255;
    return v.held == nullptr ? 1 : max_of<i32>(1, v.held[e * v.stride + h]);
  }

  GIMBAL_OVER_TEAM static i32 objective_of_comm(const LayerView& v, i32 comm_max) {
    if (v.comm_term == CommTerm::kAbsent) return 0;
    return v.comm_term == CommTerm::kUnit ? comm_max : mul_q31(comm_max, v.max_scale);
  }

  // Writes what slot (k, h) costs under replica count `replicas` (`even`), or under the spread at hand (`nearest`).
  GIMBAL_OVER_TEAM static void price_slot(const LayerView& v, const Walker& w, i32 price, i32 k, i32 h) {
    const i32 j = k * v.stride + h;
    const i32 e = w.expert[j];
    const u32 share = share_q31(w.replicas[e]);
    w.share[j] = share;
    w.load[j] = mul_q31(load_of(v, e, h), share);
    w.comm[j] = mul_q31(v.comm[e * v.stride + h], share);
    w.linear[j] = mul_q31(w.comm[j], v.total_scale) + (is_new(v, e, h) ? price : 0);
  }

  // ---- the whole state

  // Prices every slot and sums every GPU.
  GIMBAL_OVER_TEAM void reprice() {
    team_.sync();  // the sums may just have been reduced
    const LayerView v = v_;
    const Walker w = w_;
    const i32 price = price_;
    team_.for_each(v.stride, [=](i32 h) GIMBAL_LAMBDA {
      w.gpu_load[h] = w.gpu_comm[h] = w.gpu_linear[h] = w.gpu_new[h] = 0;
      if (h >= v.gpus) {
        GIMBAL_ROLLED
        for (i32 k = 0; k < v.slots; ++k) {
          const i32 j = k * v.stride + h;
          w.expert[j] = 0;
          w.share[j] = 0;
          w.load[j] = w.comm[j] = w.linear[j] = 0;
        }
        return;
      }
      GIMBAL_ROLLED
      for (i32 k = 0; k < v.slots; ++k) price_slot(v, w, price, k, h);
    });
    if (v.nearest) {
      GIMBAL_ROLLED
      for (i32 e = 0; e < v.experts; ++e) {
        if (w.replicas[e] > 1) price_nearest(e);
      }
    }
    team_.for_each(v.gpus, [=](i32 h) GIMBAL_LAMBDA { sum_gpu(v, w, h); });
  }

  GIMBAL_OVER_TEAM static void sum_gpu(const LayerView& v, const Walker& w, i32 h) {
    i32 load = 0, comm = 0, linear = 0, fresh = 0;
    GIMBAL_ROLLED
    for (i32 k = 0; k < v.slots; ++k) {
      const i32 j = k * v.stride + h;
      load += w.load[j];
      comm += w.comm[j];
      linear += mul_q31(w.comm[j], v.total_scale);
      fresh += is_new(v, w.expert[j], h) ? 1 : 0;
    }
    w.gpu_load[h] = load;
    w.gpu_comm[h] = comm;
    w.gpu_linear[h] = linear;
    w.gpu_new[h] = fresh;
  }

  // The objective of the state at hand.
  GIMBAL_OVER_TEAM void measure() {
    const Walker w = w_;
    load_max_ = team_.max(v_.gpus, [=](i32 h) GIMBAL_LAMBDA { return w.gpu_load[h]; });
    comm_max_ = team_.max(v_.gpus, [=](i32 h) GIMBAL_LAMBDA { return w.gpu_comm[h]; });
    new_pairs_ = v_.held == nullptr ? 0 : static_cast<i32>(sum_of(w.gpu_new));
    value_ = i64{load_max_} + objective_of_comm(v_, comm_max_) + sum_of(w.gpu_linear) + i64{price_} * new_pairs_;
  }

  GIMBAL_OVER_TEAM void keep(i32* where) {
    team_.copy(v_.slots * v_.stride, w_.expert, where);
  }

  // Notes the state if no earlier one with as many migrations costs less by the problem's own prices.
  GIMBAL_OVER_TEAM void record_frontier() {
    if (new_pairs_ >= w_.frontier) return;
    const i64 own = value_ - i64{price_ - v_.price} * new_pairs_;
    if (own >= w_.frontier_value[new_pairs_]) return;
    team_.sync();
    const Walker w = w_;
    const i32 at = new_pairs_;
    team_.single([=]() GIMBAL_LAMBDA { w.frontier_value[at] = own; });
    keep(w_.frontier_expert + static_cast<i64>(at) * v_.slots * v_.stride);
  }

  GIMBAL_OVER_TEAM void after_change() {
    measure();
    if (value_ < best_value_) {
      best_value_ = value_;
      keep(w_.best_expert);
    }
    if (w_.frontier > 0) record_frontier();
  }

  // ---- the walk

  GIMBAL_OVER_TEAM void cool(i64 step, i64 total) {
    const i64 octaves_q16 = total > 0 ? step * (i64{kCoolingOctaves} << 16) / total : 0;
    const i64 hottest =
        (max_of<i64>(value_, 0) << temper_.hot_octaves) / (i64{kHotDivisor} * v_.slots * v_.slots);
    const i32 octave = static_cast<i32>(octaves_q16 >> 16);
    relax_potential(octave);
    const i64 hot = hottest >> octave;
    const i64 cap = temper_.below_price ? i64{price_} / 2 : (i64{1} << kSearchBits) >> 5;
    const i64 temperature = min_of(hot - ((hot * (octaves_q16 & 0xFFFF)) >> 17), cap);
    const Walker w = w_;
    const i32* table = team_.noise_table();
    team_.sync();  // the last step's scores were compared with noise
    // Four to an index, so that a thread has four numbers on their way from memory.
    const i32 quarter = (kNoiseSize + v_.stride) / 4;
    team_.for_each(quarter, [=](i32 n) GIMBAL_LAMBDA {
      for (i32 part = 0; part < 4; ++part) {
        const i32 i = n + part * quarter;
        const u64 product = static_cast<u64>(static_cast<u32>(table[i & (kNoiseSize - 1)])) * static_cast<u64>(temperature);
        w.noise[i] = static_cast<i32>(product >> kNoiseBits);
      }
    });
  }

  // Towards the end the potential fades and the objective alone decides; some walkers rely on it less from the start.
  GIMBAL_OVER_TEAM void relax_potential(i32 octave) {
    const i32 fade = octave < kFadingOctave ? 0 : 3 * (octave - kFadingOctave + 1);
    const i32 relaxed = temper_.relaxed_octaves + fade;
    load_potential_.shift = min_of(load_base_shift_ + relaxed, 62);
    comm_potential_.shift = min_of(comm_base_shift_ + relaxed, 62);
  }

  GIMBAL_OVER_TEAM i32 busiest(const i32* per_gpu) {
    return team_.argmin(v_.gpus, [=](i32 h) GIMBAL_LAMBDA { return -per_gpu[h]; }).index;
  }

  // The two greatest of per_gpu without GPU g.
  GIMBAL_OVER_TEAM TopTwo top_two_without(const i32* per_gpu, i32 g) {
    TopTwo top{0, 0, -1};
    const Best first = team_.argmin(v_.gpus, [=](i32 h) GIMBAL_LAMBDA { return h == g ? 1 : -per_gpu[h]; });
    if (first.score > 0) return top;
    top.first = -first.score;
    top.first_gpu = first.index;
    const i32 f = first.index;
    top.second = team_.max(v_.gpus, [=](i32 h) GIMBAL_LAMBDA { return h == g || h == f ? 0 : per_gpu[h]; });
    return top;
  }

  GIMBAL_OVER_TEAM void take_step(i64 step) {
    const u64 bits = draw(key_, static_cast<u64>(step));
    const i32 kind = static_cast<i32>(step & 3);
    i32 focus;
    if (kind == 0 || (kind == 2 && v_.comm_term == CommTerm::kAbsent)) {
      focus = busiest(w_.gpu_load);
    } else if (kind == 2) {
      focus = busiest(w_.gpu_comm);
    } else {
      focus = below(static_cast<u32>(bits >> 32), v_.gpus);
    }
    if (step % kReplaceEvery == 1 && v_.slots * v_.gpus > v_.experts) {
      // Alternate between a random GPU and the busiest ones: there a lighter replica helps at once.
      const i64 turn = (step / kReplaceEvery) & 3;
      if (turn == 1) focus = busiest(w_.gpu_load);
      if (turn == 3 && v_.comm_term != CommTerm::kAbsent) focus = busiest(w_.gpu_comm);
      if (!v_.nearest) replace_step(focus, bits);
    } else {
      swap_step(focus, bits);
    }
    if (v_.nearest) {
      GIMBAL_ROLLED
      for (i32 probe = 0; probe < kNearestProbes; ++probe) {
        nearest_probe(focus, draw(key_ ^ 0x6E656172ULL, static_cast<u64>(step) * kNearestProbes + probe));
      }
    }
  }

  // The score of staying put: the objective, plus its own noise so that no candidate is favoured.
  GIMBAL_OVER_TEAM i32 stay_score(u64 bits) const {
    return load_max_ + objective_of_comm(v_, comm_max_) + w_.noise[(bits >> 11) & (kNoiseSize - 1)];
  }

  // ---- swaps

  GIMBAL_OVER_TEAM void swap_step(i32 g, u64 bits) {
    prepare_swaps(g);
    const Best best = best_swap(g, bits);
    unbar(g);
    if (best.index < 0 || best.score >= stay_score(bits)) return;
    const i32 cells = v_.slots * v_.stride;
    const i32 i = best.index / cells;
    const i32 k = best.index % cells / v_.stride;
    const i32 h = best.index % v_.stride;
    swap(i, g, k, h);
    after_change();
  }

  // Fills the scan's arrays for focus g; bars experts that g has no room for.
  GIMBAL_OVER_TEAM void prepare_swaps(i32 g) {
    const LayerView v = v_;
    const Walker w = w_;
    const i32 price = price_;
    team_.for_each(v.slots, [=](i32 k) GIMBAL_LAMBDA {
      const i32 e = w.expert[k * v.stride + g];
      if (w.copies[e * v.stride + g] >= room(v, e, g)) Team::set(&w.barred[e], kBarred);
    });
    const i32* load_t = v.uniform_compute ? v.load_t : v.load_t + static_cast<i64>(g) * v.experts;
    const i32* comm_t = v.comm_t + static_cast<i64>(g) * v.experts;
    const u8* held = v.held;
    const bool nearest = v.nearest;
    const auto onto_focus = [=](i32 k, i32 h) GIMBAL_LAMBDA {  // slot (k, h)'s expert on g
      const i32 j = k * v.stride + h;
      const i32 f = w.expert[j];
      const u32 share = w.share[j];
      const i32 comm = mul_q31(comm_t[f], share);
      w.focus_load[j] = mul_q31(load_t[f], share) + w.gpu_load[g];
      w.focus_comm[j] = comm + w.gpu_comm[g];
      w.rest_load[j] = w.gpu_load[h] - w.load[j];
      w.rest_comm[j] = w.gpu_comm[h] - w.comm[j];
      w.linear_delta[j] = mul_q31(comm, v.total_scale) - w.linear[j] + w.barred[f];
    };
    const auto off_focus = [=](i32 i, i32 h) GIMBAL_LAMBDA {  // slot (i, g)'s expert on h
      const i32 m = i * v.stride + h;
      const i32 at = i * v.stride + g;
      const i32 e = w.expert[at];
      const u32 share = w.share[at];
      const i32 comm = mul_q31(v.comm[e * v.stride + h], share);
      w.move_load[m] = mul_q31(v.uniform_compute ? v.load[e] : v.load[e * v.stride + h], share);
      w.move_comm[m] = comm;
      i32 linear = mul_q31(comm, v.total_scale) - w.linear[at];
      const i32 copies = w.copies[e * v.stride + h];
      const i32 allowed = held == nullptr ? 1 : max_of<i32>(1, held[e * v.stride + h]);
      linear += held != nullptr && held[e * v.stride + h] == 0 ? price : 0;
      const bool barred = h == g || h >= v.gpus || (!v.allow_duplicates && copies >= allowed);
      w.move_linear[m] = linear + (barred ? kBarred : 0);
    };
    team_.for_each2(v.slots, v.stride, onto_focus, off_focus);
    if (held != nullptr) {
      team_.for_each2(v.slots, v.stride, [=](i32 k, i32 h) GIMBAL_LAMBDA {
        const i32 j = k * v.stride + h;
        w.linear_delta[j] += held[w.expert[j] * v.stride + g] == 0 ? price : 0;
      });
    }
    if (nearest) {
      // The shares of a replicated expert hang on its other replicas.
      team_.for_each2(v.slots, v.stride, [=](i32 k, i32 h) GIMBAL_LAMBDA {
        const i32 j = k * v.stride + h;
        if (w.replicas[w.expert[j]] > 1) w.linear_delta[j] = kBarred;
        if (w.replicas[w.expert[k * v.stride + g]] > 1) w.move_linear[j] = kBarred;
      });
    }
    const TopTwo load = top_two_without(w.gpu_load, g);
    const TopTwo comm = top_two_without(w.gpu_comm, g);
    const Potential load_potential = load_potential_;
    const Potential comm_potential = comm_potential_;
    const i32 own_load = w.gpu_load[g];
    const i32 own_comm = w.gpu_comm[g];
    team_.for_each(v.stride, [=](i32 h) GIMBAL_LAMBDA {
      w.other_load[h] = h == load.first_gpu ? load.second : load.first;
      w.other_comm[h] = h == comm.first_gpu ? comm.second : comm.first;
      w.potential[h] = load_potential.of(own_load, w.gpu_load[h]) + comm_potential.of(own_comm, w.gpu_comm[h]);
    });
  }

  GIMBAL_OVER_TEAM void unbar(i32 g) {
    const LayerView v = v_;
    const Walker w = w_;
    team_.for_each(v.slots, [=](i32 k) GIMBAL_LAMBDA { Team::set(&w.barred[w.expert[k * v.stride + g]], 0); });
  }

  GIMBAL_OVER_TEAM Best best_swap(i32 g, u64 bits) {
    switch (v_.comm_term) {
      case CommTerm::kAbsent:
        return best_swap_of<CommTerm::kAbsent>(g, bits);
      case CommTerm::kUnit:
        return best_swap_of<CommTerm::kUnit>(g, bits);
      default:
        return best_swap_of<CommTerm::kScaled>(g, bits);
    }
  }

  // Candidate (i, k, h): g's slot i and slot (k, h) trade experts. Score: the objective after it, less the linear part
  // before it, plus the change of the potential, plus noise.
  template <CommTerm kComm>
  GIMBAL_OVER_TEAM Best best_swap_of(i32 g, u64 bits) {
    const LayerView v = v_;
    const Walker w = w_;
    const Potential load_potential = load_potential_;
    const Potential comm_potential = comm_potential_;
    const i32 stride = v.stride;
    const u32 max_scale = v.max_scale;
    const i32 noise_at = static_cast<i32>(bits & (kNoiseSize - 1));
    return team_.argmin3(v.slots, v.slots, stride, [=](i32 i, i32 k, i32 h) GIMBAL_LAMBDA {
      const i32 j = k * stride + h;
      const i32 m = i * stride + h;
      const i32 at = i * stride + g;
      const i32 load_g = w.focus_load[j] - w.load[at];
      const i32 load_h = w.rest_load[j] + w.move_load[m];
      const i32* const noise = w.noise + h;
      i32 score = max_of(max_of(load_g, load_h), w.other_load[h]) + w.linear_delta[j] + w.move_linear[m] -
                  w.potential[h] + load_potential.of(load_g, load_h) +
                  noise[(noise_at + i * 97 + k * stride) & (kNoiseSize - 1)];
      if (kComm != CommTerm::kAbsent) {
        const i32 comm_g = w.focus_comm[j] - w.comm[at];
        const i32 comm_h = w.rest_comm[j] + w.move_comm[m];
        const i32 comm_max = max_of(max_of(comm_g, comm_h), w.other_comm[h]);
        score += (kComm == CommTerm::kUnit ? comm_max : mul_q31(comm_max, max_scale)) + comm_potential.of(comm_g, comm_h);
      }
      return score;
    });
  }

  GIMBAL_OVER_TEAM void take_out(i32 k, i32 h) {
    const i32 j = k * v_.stride + h;
    const i32 e = w_.expert[j];
    w_.gpu_load[h] -= w_.load[j];
    w_.gpu_comm[h] -= w_.comm[j];
    w_.gpu_linear[h] -= mul_q31(w_.comm[j], v_.total_scale);
    w_.gpu_new[h] -= is_new(v_, e, h) ? 1 : 0;
    --w_.copies[e * v_.stride + h];
  }

  GIMBAL_OVER_TEAM void put_in(i32 k, i32 h, i32 e) {
    const i32 j = k * v_.stride + h;
    w_.expert[j] = e;
    w_.home[e] = h;
    ++w_.copies[e * v_.stride + h];
    price_slot(v_, w_, price_, k, h);
    w_.gpu_load[h] += w_.load[j];
    w_.gpu_comm[h] += w_.comm[j];
    w_.gpu_linear[h] += mul_q31(w_.comm[j], v_.total_scale);
    w_.gpu_new[h] += is_new(v_, e, h) ? 1 : 0;
  }

  // Slots (i, g) and (k, h) trade experts whose shares do not hang on where the other replicas are.
  GIMBAL_OVER_TEAM void swap(i32 i, i32 g, i32 k, i32 h) {
    team_.single([&]() GIMBAL_LAMBDA {
      const i32 e = w_.expert[i * v_.stride + g];
      const i32 f = w_.expert[k * v_.stride + h];
      take_out(i, g);
      take_out(k, h);
      put_in(i, g, f);
      put_in(k, h, e);
    });
  }

  // ---- replicas, `even`

  // The first slot of g, from a random one on, whose expert has another replica; or -1.
  GIMBAL_OVER_TEAM i32 redundant_slot(i32 g, u32 bits) {
    const LayerView v = v_;
    const Walker w = w_;
    const i32 from = below(bits, v.slots);
    const Best first = team_.argmin(v.slots, [=](i32 k) GIMBAL_LAMBDA {
      const i32 distance = k < from ? k - from + v.slots : k - from;
      return w.replicas[w.expert[k * v.stride + g]] > 1 ? distance : v.slots;
    });
    return first.score < v.slots ? first.index : -1;
  }

  // Replaces a redundant replica on g by one more replica of the best other expert.
  GIMBAL_OVER_TEAM void replace_step(i32 g, u64 bits) {
    const i32 k = redundant_slot(g, static_cast<u32>(bits));
    if (k < 0) return;
    const LayerView v = v_;
    const Walker w = w_;
    const i32 price = price_;
    const i32 e = w.expert[k * v.stride + g];
    const u32 old_share = share_q31(w.replicas[e]);
    const u32 new_share = share_q31(w.replicas[e] - 1);
    // The GPUs as they stand with the replica gone: its fellows take over its share.
    i32* const load = w.spread_load;
    i32* const comm = w.spread_comm;
    i32* const linear = w.spread_load + v.stride;
    team_.for_each(v.stride, [=](i32 h) GIMBAL_LAMBDA {
      const i32 copies = w.copies[e * v.stride + h];
      const i32 left = copies - (h == g ? 1 : 0);
      const i32 load_all = v.uniform_compute ? v.load[e] : v.load[e * v.stride + h];
      const i32 comm_all = v.comm[e * v.stride + h];
      const i32 old_comm = mul_q31(comm_all, old_share);
      const i32 new_comm = mul_q31(comm_all, new_share);
      load[h] = w.gpu_load[h] - copies * mul_q31(load_all, old_share) + left * mul_q31(load_all, new_share);
      comm[h] = w.gpu_comm[h] - copies * old_comm + left * new_comm;
      linear[h] = left * mul_q31(new_comm, v.total_scale) - copies * mul_q31(old_comm, v.total_scale);
    });
    const Potential load_potential = load_potential_;
    const Potential comm_potential = comm_potential_;
    const i32 gone = static_cast<i32>(team_.sum(v.gpus, [=](i32 h) GIMBAL_LAMBDA {
      return linear[h] + load_potential.of(load[h]) + comm_potential.of(comm[h]) - load_potential.of(w.gpu_load[h]) -
             comm_potential.of(w.gpu_comm[h]);
    })) - (is_new(v, e, g) ? price : 0);
    i32* const score = w.focus_load;  // [experts]; the scan's arrays are free here
    score_more_replicas(e, g, load, comm, score);
    const TopTwo top_load = top_two_without(load, g);
    const TopTwo top_comm = top_two_without(comm, g);
    const i32 noise_at = static_cast<i32>((bits >> 20) & (kNoiseSize - 1));
    const Search* const self = this;
    const Best best = team_.argmin(v.experts, [=](i32 f) GIMBAL_LAMBDA {
      if (f == e || w.copies[f * v.stride + g] >= room(v, f, g)) return 2 * kBarred - 1;
      const i32 with = w.replicas[f] == 1 ? self->score_second_replica(f, g, load, comm, top_load, top_comm) : score[f];
      return with + gone + (is_new(v, f, g) ? price : 0) + w.noise[(noise_at + f) & (kNoiseSize - 1)];
    });
    if (best.index < 0 || best.score >= stay_score(bits)) return;
    replace(k, g, best.index);
    after_change();
  }

  // The objective with a second replica of f on g, against GPUs that stand at load and comm.
  GIMBAL_OVER_TEAM i32 score_second_replica(i32 f, i32 g, const i32* load, const i32* comm, TopTwo top_load,
                                       TopTwo top_comm) const {
    const i32 q = w_.home[f];
    const u32 half = kOneQ31 / 2;
    const i32 load_g = load[g] + mul_q31(load_of(v_, f, g), half);
    const i32 load_q = load[q] - load_of(v_, f, q) + mul_q31(load_of(v_, f, q), half);
    const i32 more = mul_q31(v_.comm[f * v_.stride + g], half);
    const i32 whole = v_.comm[f * v_.stride + q];
    const i32 less = mul_q31(whole, half);
    const i32 comm_g = comm[g] + more;
    const i32 comm_q = comm[q] - whole + less;
    const i32 load_rest = q == top_load.first_gpu ? top_load.second : top_load.first;
    const i32 comm_rest = q == top_comm.first_gpu ? top_comm.second : top_comm.first;
    return max_of(max_of(load_g, load_q), load_rest) +
           objective_of_comm(v_, max_of(max_of(comm_g, comm_q), comm_rest)) + mul_q31(more, v_.total_scale) +
           mul_q31(less, v_.total_scale) - mul_q31(whole, v_.total_scale) + load_potential_.of(load_g, load_q) -
           load_potential_.of(load[g], load[q]) + comm_potential_.of(comm_g, comm_q) - comm_potential_.of(comm[g], comm[q]);
  }

  // The same for each f but e that has several replicas already, into score [experts]: all of their shares shrink.
  GIMBAL_OVER_TEAM void score_more_replicas(i32 e, i32 g, const i32* load, const i32* comm, i32* score) {
    const LayerView v = v_;
    const Walker w = w_;
    const Potential load_potential = load_potential_;
    const Potential comm_potential = comm_potential_;
    const auto replicated = [=](i32 f) GIMBAL_LAMBDA { return w.replicas[f] > 1 && f != e; };
    const auto on_gpu = [=](i32 f, i32 h) GIMBAL_LAMBDA {
      const i32 before = w.copies[f * v.stride + h];
      const i32 after = before + (h == g ? 1 : 0);
      if (Team::kSkipsPay && after == 0) return RowTotals{load[h], comm[h], 0};
      const u32 old_share = share_q31(w.replicas[f]);
      const u32 new_share = share_q31(w.replicas[f] + 1);
      const i32 load_all = load_of(v, f, h);
      const i32 comm_all = v.comm[f * v.stride + h];
      const i32 old_comm = mul_q31(comm_all, old_share);
      const i32 new_comm = mul_q31(comm_all, new_share);
      const i32 load_h = load[h] + after * mul_q31(load_all, new_share) - before * mul_q31(load_all, old_share);
      const i32 comm_h = comm[h] + after * new_comm - before * old_comm;
      const i32 rest = after * mul_q31(new_comm, v.total_scale) - before * mul_q31(old_comm, v.total_scale) +
                       load_potential.of(load_h) - load_potential.of(load[h]) + comm_potential.of(comm_h) -
                       comm_potential.of(comm[h]);
      return RowTotals{load_h, comm_h, rest};
    };
    team_.total_rows(v.experts, v.gpus, replicated, on_gpu, [=](i32 f, RowTotals t) GIMBAL_LAMBDA {
      score[f] = t.first_max + objective_of_comm(v, t.second_max) + t.sum;
    });
  }

  // Slot (k, g) gives up its expert for f; both experts' other replicas change their shares.
  GIMBAL_OVER_TEAM void replace(i32 k, i32 g, i32 f) {
    const i32 e = w_.expert[k * v_.stride + g];
    team_.single([&]() GIMBAL_LAMBDA {
      w_.expert[k * v_.stride + g] = f;
      --w_.copies[e * v_.stride + g];
      ++w_.copies[f * v_.stride + g];
      --w_.replicas[e];
      ++w_.replicas[f];
    });
    refresh(e);
    refresh(f);
  }

  // Reprices every replica of e and resums its GPUs (and those it just left: they still are in g's sum).
  GIMBAL_OVER_TEAM void refresh(i32 e) {
    const LayerView v = v_;
    const Walker w = w_;
    const i32 price = price_;
    team_.for_each(v.gpus, [=](i32 h) GIMBAL_LAMBDA {
      if (w.copies[e * v.stride + h] == 0) return;
      GIMBAL_ROLLED
      for (i32 k = 0; k < v.slots; ++k) {
        if (w.expert[k * v.stride + h] == e) price_slot(v, w, price, k, h);
      }
      if (w.replicas[e] == 1) w.home[e] = h;
    });
    if (v.nearest && w.replicas[e] > 1) price_nearest(e);
    team_.for_each(v.gpus, [=](i32 h) GIMBAL_LAMBDA {
      if (w.copies[e * v.stride + h] > 0) sum_gpu(v, w, h);
    });
  }

  // ---- `nearest`

  // Lists e's GPUs with one copy fewer on `without` and one more on `with` (-1: none); returns how many there are.
  GIMBAL_OVER_TEAM i32 list_hosts(i32 e, i32 without, i32 with) {
    const LayerView v = v_;
    const Walker w = w_;
    team_.single([=]() GIMBAL_LAMBDA {
      i32 count = 0;
      GIMBAL_ROLLED
      for (i32 h = 0; h < v.gpus; ++h) {
        const i32 copies = w.copies[e * v.stride + h] - (h == without ? 1 : 0) + (h == with ? 1 : 0);
        if (copies <= 0) continue;
        w.host_gpu[count] = h;
        w.host_copies[count++] = copies;
      }
      w.host_gpu[v.gpus] = count;
    });
    return w_.host_gpu[v_.gpus];
  }

  // Which share of each source's tokens for e goes to each of the cheapest of these replicas; then what e costs every GPU,
  // into load and comm.
  GIMBAL_OVER_TEAM void spread(i32 e, i32 without, i32 with, i32* load, i32* comm) {
    const LayerView v = v_;
    const Walker w = w_;
    const i32 hosts = list_hosts(e, without, with);
    team_.for_each(v.sources, [=](i32 s) GIMBAL_LAMBDA {
      const u32* distance = v.distance + static_cast<i64>(s) * v.stride;
      u32 least = distance[w.host_gpu[0]];
      i32 ties = 0;
      GIMBAL_ROLLED
      for (i32 n = 0; n < hosts; ++n) {
        const u32 d = distance[w.host_gpu[n]];
        ties = d < least ? 0 : ties;
        least = min_of(least, d);
        ties += d == least ? w.host_copies[n] : 0;
      }
      w.source_distance[s] = least;
      w.source_share[s] = ties;
    });
    team_.for_each(v.stride, [=](i32 h) GIMBAL_LAMBDA { load[h] = comm[h] = 0; });
    team_.for_each(hosts, [=](i32 n) GIMBAL_LAMBDA {
      const i32 h = w.host_gpu[n];
      const i32 copies = w.host_copies[n];
      i32 load_h = 0, comm_h = 0;
      GIMBAL_ROLLED
      for (i32 s = 0; s < v.sources; ++s) {
        const i64 at = static_cast<i64>(s) * v.stride + h;
        if (v.distance[at] != w.source_distance[s]) continue;
        const u32 share = share_q31(w.source_share[s]);
        const i64 tokens_at = static_cast<i64>(s) * v.experts + e;
        load_h += copies * mul_q31(mul_q31(v.source_load[tokens_at], v.compute_factor[h]), share);
        comm_h += copies * mul_q31(mul_q31(v.source_comm[tokens_at], v.comm_factor[at]), share);
      }
      load[h] = load_h;
      comm[h] = comm_h;
    });
  }

  // Prices the replicas of a replicated expert; copies on one GPU share its part.
  GIMBAL_OVER_TEAM void price_nearest(i32 e) {
    spread(e, -1, -1, w_.spread_load, w_.spread_comm);
    const LayerView v = v_;
    const Walker w = w_;
    const i32 price = price_;
    team_.for_each(v.gpus, [=](i32 h) GIMBAL_LAMBDA {
      const i32 copies = w.copies[e * v.stride + h];
      if (copies == 0) return;
      GIMBAL_ROLLED
      for (i32 k = 0; k < v.slots; ++k) {
        const i32 j = k * v.stride + h;
        if (w.expert[j] != e) continue;
        w.load[j] = w.spread_load[h] / copies;
        w.comm[j] = w.spread_comm[h] / copies;
        w.linear[j] = mul_q31(w.comm[j], v.total_scale) + (is_new(v, e, h) ? price : 0);
      }
    });
  }

  // Tries one random change around g that involves a replicated expert: another expert in the place of a redundant
  // replica, or a swap. Priced exactly: O(sources * replicas).
  GIMBAL_OVER_TEAM void nearest_probe(i32 g, u64 bits) {
    const i32 i = below(static_cast<u32>(bits), v_.slots);
    const i32 e = w_.expert[i * v_.stride + g];
    const u64 more = mix64(bits);
    const i32 h = below(static_cast<u32>(more), v_.gpus);
    const i32 k = below(static_cast<u32>(more >> 32), v_.slots);
    const bool replace_it = w_.replicas[e] > 1 && (bits >> 63) != 0;
    i32 f = w_.expert[k * v_.stride + h];
    if (replace_it && ((bits >> 62) & 1) != 0) f = below(static_cast<u32>(mix64(more)), v_.experts);
    if (f == e || w_.copies[f * v_.stride + g] >= room(v_, f, g)) return;
    if (!replace_it) {
      if (h == g || (w_.replicas[e] == 1 && w_.replicas[f] == 1)) return;  // the scan sees those
      if (w_.copies[e * v_.stride + h] >= room(v_, e, h)) return;
    }
    const i32 score = score_nearest(e, f, g, replace_it ? -1 : h) + w_.noise[(bits >> 32) & (kNoiseSize - 1)];
    if (score >= stay_score(bits)) return;
    if (replace_it) {
      team_.single([&]() GIMBAL_LAMBDA {
        w_.expert[i * v_.stride + g] = f;
        --w_.copies[e * v_.stride + g];
        ++w_.copies[f * v_.stride + g];
        --w_.replicas[e];
        ++w_.replicas[f];
      });
    } else {
      team_.single([&]() GIMBAL_LAMBDA {
        w_.expert[i * v_.stride + g] = f;
        w_.expert[k * v_.stride + h] = e;
        --w_.copies[e * v_.stride + g];
        ++w_.copies[f * v_.stride + g];
        --w_.copies[f * v_.stride + h];
        ++w_.copies[e * v_.stride + h];
      });
    }
    refresh(e);
    refresh(f);
    const LayerView v = v_;
    const Walker w = w_;
    team_.for_each(v.gpus, [=](i32 x) GIMBAL_LAMBDA {
      if (x == g || x == h) sum_gpu(v, w, x);
    });
    after_change();
  }

  // The objective (less the linear part before) with e off g and f on it; h >= 0: and the other way round on h.
  GIMBAL_OVER_TEAM i32 score_nearest(i32 e, i32 f, i32 g, i32 h) {
    const LayerView v = v_;
    const Walker w = w_;
    i32* const e_load = w.spread_load;
    i32* const e_comm = w.spread_comm;
    i32* const f_load = w.spread_load + v.stride;
    i32* const f_comm = w.spread_comm + v.stride;
    spread(e, g, h, e_load, e_comm);
    spread(f, h, g, f_load, f_comm);
    const Potential load_potential = load_potential_;
    const Potential comm_potential = comm_potential_;
    i32* const linear = w.potential;
    team_.for_each(v.gpus, [=](i32 x) GIMBAL_LAMBDA {
      i32 load = w.gpu_load[x] + e_load[x] + f_load[x];
      i32 comm = w.gpu_comm[x] + e_comm[x] + f_comm[x];
      i32 before = 0;
      if (w.copies[e * v.stride + x] > 0 || w.copies[f * v.stride + x] > 0) {
        GIMBAL_ROLLED
        for (i32 k = 0; k < v.slots; ++k) {
          const i32 j = k * v.stride + x;
          if (w.expert[j] != e && w.expert[j] != f) continue;
          load -= w.load[j];
          comm -= w.comm[j];
          before += mul_q31(w.comm[j], v.total_scale);
        }
      }
      linear[x] = mul_q31(e_comm[x], v.total_scale) + mul_q31(f_comm[x], v.total_scale) - before +
                  load_potential.of(load) - load_potential.of(w.gpu_load[x]) + comm_potential.of(comm) -
                  comm_potential.of(w.gpu_comm[x]);
      e_load[x] = load;
      e_comm[x] = comm;
    });
    const i32 load_max = team_.max(v.gpus, [=](i32 x) GIMBAL_LAMBDA { return e_load[x]; });
    const i32 comm_max = team_.max(v.gpus, [=](i32 x) GIMBAL_LAMBDA { return e_comm[x]; });
    const i64 rest = team_.sum(v.gpus, [=](i32 x) GIMBAL_LAMBDA { return i64{linear[x]}; });
    i32 pairs = (is_new(v, f, g) ? 1 : 0) - (is_new(v, e, g) ? 1 : 0);
    if (h >= 0) pairs += (is_new(v, e, h) ? 1 : 0) - (is_new(v, f, h) ? 1 : 0);
    return load_max + objective_of_comm(v, comm_max) + static_cast<i32>(rest) + pairs * price_;
  }

  Team& team_;
  const LayerView& v_;
  const Walker& w_;
  const u64 key_;
  const Temper temper_;
  i32 price_;
  i32 load_base_shift_ = 62;
  i32 comm_base_shift_ = 62;
  Potential load_potential_;
  Potential comm_potential_;
  i32 load_max_ = 0;
  i32 comm_max_ = 0;
  i32 new_pairs_ = 0;
  i64 value_ = 0;
  i64 best_value_ = 0;
};

}  // namespace spec
}  // namespace gimbal
