// The audit: recomputes a layer's cost and checks its constraints from the problem itself, the slow and plain way.
// It shares no code with the search or with spec/cost.h, so that a mistake there cannot hide here.
#pragma once

#include <cstdint>

#include "problem.h"
#include "quantise.h"

namespace gimbal {

struct AuditedLayer {
  int64_t load_max = 0;
  int64_t comm_max = 0;
  int64_t comm_total = 0;
  int64_t source_max = 0;
  int64_t migrations = 0;
  int64_t objective = 0;
};

// `placement` [gpus * slots_per_gpu] in the caller's GPU ids, -1 exactly on dead GPUs. Throws Error(kInvalidInput) that
// names `field` where the placement breaks a hard constraint.
AuditedLayer audit_layer(const ProblemInput& input, const Quantised& problem, int32_t layer, const int32_t* placement,
                         const char* field);

}  // namespace gimbal
