// The order of a migration: the moves between two placements as transfers from GPU to GPU, packed into rounds. In a round a GPU
// sends at most one expert and receives at most one. While a round runs the engine serves by the placement that the round
// started with; between rounds, at a barrier, local copies are made and the new placement takes effect on all GPUs at once.
//
// A transfer lands in its final slot where that can be emptied before the round, else in a staging slot of the receiver, from
// where a local copy takes it to its slot at a later barrier. A slot may be emptied when its expert has another live replica
// and need not be sent from there. Layers share the rounds and a GPU's staging slots.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "moves.h"
#include "slots.h"

namespace gimbal {

struct ScheduleOptions {
  // Of each GPU, for all layers together; with one there is always a schedule. No more are used than help.
  int32_t staging_slots = 4;
  const std::atomic<bool>* cancel = nullptr;
};

struct Transfer {
  int32_t round = 0;
  int32_t layer = 0;
  int32_t expert = 0;
  int32_t from_gpu = 0;
  int32_t from_slot = 0;  // slots are counted within the GPU
  int32_t to_gpu = 0;
  int32_t to_slot = 0;  // a staging slot from Schedule::slots on
};

// An expert that no live GPU holds. Its slot is free when so many rounds are over.
struct StorageLoad {
  int32_t round = 0;
  int32_t layer = 0;
  int32_t expert = 0;
  int32_t to_gpu = 0;
  int32_t to_slot = 0;
};

struct Schedule {
  std::vector<Transfer> transfers;  // by round, then receiver
  std::vector<LocalCopy> copies;    // in the order in which they are made
  std::vector<StorageLoad> loads;   // by round
  int32_t rounds = 0;
  // The most that a GPU has to send or receive; senders are holders before the migration, chosen so that this is the least.
  int32_t lower_bound = 0;
  int32_t slots = 0;  // of a GPU in a layer, the more of the two placements; staging slots are numbered from here on
  std::vector<int32_t> staging_peak;  // [gpus], staging slots used at once
};

// Throws Error: where an entry is wrong; where an expert would be nowhere in the end; where the staging slots do not suffice.
Schedule schedule_migration(const PlacementPair& pair, const ScheduleOptions& options);

}  // namespace gimbal
