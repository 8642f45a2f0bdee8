// Migrations without staging slots. Whatever arrives needs an empty slot, and a keeper's slot becomes empty only once its expert
// has arrived elsewhere. So empty slots travel: from the receiver of a keeper's expert to the keeper. An order exists if every
// receiver can be reached by an empty slot along such ways (the walks of empty slots can be joined as in an Euler tour), and it
// is found by never taking a transfer after which that would not hold.
#pragma once

#include <cstdint>

#include "progress.h"

namespace gimbal {

// Experts of the layer that could never arrive, once what takes part in the round has; 0: an order exists. `first`, if not
// null, is set to one of them.
int32_t count_stranded(Progress& progress, int32_t layer, int32_t* first);

// Chooses among the old GPUs of each expert the keepers that strand fewest. A local search: it may miss an order that exists.
void choose_unstaged_keepers(Progress& progress);

}  // namespace gimbal
