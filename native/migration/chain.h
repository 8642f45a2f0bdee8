// Transfers of one layer that make room for each other: an expert goes to a GPU whose own expert goes on to the next, up to a
// GPU that has room, or round a circle. Together in one round, with a staging slot on each GPU, they can all settle at its end.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "progress.h"

namespace gimbal {

// What a chain may use: links that are in staging already need no transfer, but no GPU twice either.
struct ChainRules {
  std::function<bool(int32_t)> can_send;                // GPU
  std::function<bool(int32_t)> can_receive;             // GPU
  std::function<bool(int32_t, int32_t)> may_use;        // layer, GPU: nothing else changes there in this round
};

// The shortest chain by which the GPU `start` gets room in the layer; empty: there is none. Arrivals, the first of which leaves
// `start`; where it is a circle the last one comes back.
std::vector<int32_t> find_chain(Progress& progress, int32_t layer, int32_t start, const ChainRules& rules);

}  // namespace gimbal
