// Who sends what: each move's sender among the holders, so that the busiest sender has as little to send as can be.
#pragma once

#include <cstdint>
#include <vector>

#include "moves.h"

namespace gimbal {

// [moves], -1 where no GPU holds the expert. The most sends of a GPU are the least that any choice of senders has; among
// equally loaded holders the nearest sends.
std::vector<int32_t> choose_senders(const Moves& moves, int32_t gpus);

}  // namespace gimbal
