// Moves between placements and their schedule, as jobs. Both take what lib/migration.ts makes of two placements.
#pragma once

#include <napi.h>

namespace gimbal::addon {

// placementMoves(pair): { promise, cancel } of { layer, expert, toGpu, holderStart, holders, dropped }, the arrays of Moves.
Napi::Value placement_moves(const Napi::CallbackInfo& info);
// scheduleMigration(pair, stagingSlots): { promise, cancel } of a Schedule in columns.
Napi::Value schedule_migration(const Napi::CallbackInfo& info);

}  // namespace gimbal::addon
