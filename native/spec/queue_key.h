// The order of waiting requests: the shortest remaining prefill first, and whoever waits longer moves up.
//
// A request's rank is remaining / aging rate + arrival. Both sides of a comparison age alike, so an order once right stays right,
// and a request is placed anew only where its remaining prefill changes. A request with p tokens left is overtaken only by those
// that arrive less than p / aging rate after it.
#pragma once

#include "units.h"

namespace gimbal {
namespace spec {

// Least first: by rank, then by the number of the push, so that equals keep their order.
struct QueueKey {
  i64 rank;
  u64 number;
};

GIMBAL_SPEC bool precedes(const QueueKey& a, const QueueKey& b) {
  return a.rank < b.rank || (a.rank == b.rank && a.number < b.number);
}

}  // namespace spec
}  // namespace gimbal
