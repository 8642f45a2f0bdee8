// Sharing one migration budget among layers that otherwise know nothing of each other.
#pragma once

#include <cstdint>
#include <vector>

namespace gimbal {

// A layer's choices: the least J found for each number of new pairs beyond the forced ones.
struct FrontierPoint {
  int64_t migrations = 0;
  int64_t objective = 0;
  int32_t id = 0;  // the caller's name for the placement
};

// Keeps the points that no other beats in both migrations and objective; sorts by migrations.
void keep_efficient(std::vector<FrontierPoint>* points);

struct BudgetShare {
  std::vector<int32_t> choice;  // [layers]: index into the layer's points
  int64_t price = 0;            // J gained by the last migration taken: the budget's multiplier; 0 where some is left over
};

// One point a layer with the sum of migrations within `budget` and the sum of J as small as steps along the layers' lower
// convex hulls, and then single steps with what is left, can make it. Every layer's first point must cost no migration.
BudgetShare share_budget(const std::vector<std::vector<FrontierPoint>>& layers, int64_t budget);

}  // namespace gimbal
