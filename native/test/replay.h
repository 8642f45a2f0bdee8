// Carries a migration's schedule out, slot by slot, and says what is wrong with it. Knows nothing of how schedules are made.
#pragma once

#include <string>

#include "../migration/schedule.h"

namespace gimbal {
namespace test {

// Empty where the schedule keeps all its promises with so many staging slots on each GPU; else the first breach in words.
std::string replay(const PlacementPair& pair, const Schedule& schedule, int32_t staging_slots);

}  // namespace test
}  // namespace gimbal
