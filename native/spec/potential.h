// What steers a walk besides the objective: a convex potential where the maximum is flat, and the temper of each walker.
#pragma once

#include "units.h"

namespace gimbal {
namespace spec {

// The convex potential of one GPU's load (or communication) x: x^2 / 2^shift, with 2^shift near twice the mean, so that
// its slope at the mean is about that of the maximum itself. Above `cap` it is flat, which keeps sums in 32 bits; there
// the maximum speaks.
struct Potential {
  i32 cap = 0;
  i32 shift = 62;
  GIMBAL_SPEC i32 of(i32 x) const {
    const u32 y = static_cast<u32>(min_of(x, cap));
    return static_cast<i32>((static_cast<u64>(y) * y) >> shift);
  }
  // Of two GPUs, rounded once.
  GIMBAL_SPEC i32 of(i32 x1, i32 x2) const {
    const u32 y1 = static_cast<u32>(min_of(x1, cap));
    const u32 y2 = static_cast<u32>(min_of(x2, cap));
    return static_cast<i32>((static_cast<u64>(y1) * y1 + static_cast<u64>(y2) * y2) >> shift);
  }
};

GIMBAL_SPEC Potential potential_for(i64 total, i32 gpus) {
  Potential p;
  const i64 mean = total / gpus;
  if (mean <= 0) return p;
  p.cap = static_cast<i32>(min_of<i64>(2 * mean, (i64{1} << kSearchBits)));
  i32 shift = 0;
  while ((2 * mean) >> (shift + 1)) ++shift;
  p.shift = shift;
  return p;
}

// How a walk differs from the plainest one, in powers of two.
struct Temper {
  i32 relaxed_octaves = 0;    // how much less it relies on the potential
  i32 hot_octaves = 0;        // how much hotter it starts
  bool below_price = false;   // never hotter than half the price of a migration
};

// The first walker of a layer is the plainest; its fellows trust the potential less and start hotter.
GIMBAL_SPEC Temper walker_temper(i32 walker) { return {2 * (walker & 3), walker & 3, false}; }

// With a budget every migration must pay by the objective alone, or the potential would spend it.
GIMBAL_SPEC Temper budget_temper() { return {6, 0, true}; }

}  // namespace spec
}  // namespace gimbal
