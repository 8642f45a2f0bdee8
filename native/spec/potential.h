// The convex potential that guides the search where the objective's maximum is flat.
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
    const u64 y = static_cast<u64>(static_cast<u32>(min_of(x, cap)));
    return static_cast<i32>((y * y) >> shift);
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

}  // namespace spec
}  // namespace gimbal
