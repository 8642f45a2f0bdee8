// Scores of many requests on many engines: which backend works them out. The formulas are in native/spec/score.h.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../spec/score_columns.h"
#include "backend.h"
#include "solve.h"

namespace gimbal {

struct ScoreOptions {
  BackendChoice backend = BackendChoice::kAuto;
  int32_t device = 0;  // of CUDA
};

struct Scores {
  std::vector<double> pressure_ms;  // [requests][engines]; NaN where the engine may not take the request
  std::vector<int32_t> best;        // [requests]; -1: none
  std::string backend;
  std::string backend_reason;  // where the choice was free and no GPU was taken: why
};

// A scorer kept between calls, with its memory. One serves one call at a time.
struct ScoreWorkspace {
  Backend* backend = nullptr;  // the scorer's
  std::unique_ptr<Scorer> scorer;
  std::vector<int64_t> pressure_us;  // of the requests at hand, [requests][engines]
};

// Throws gimbal::Error.
Scores score_requests(const spec::EngineColumns& engines, const spec::RequestColumns& requests, const ScoreOptions& options,
                      ScoreWorkspace& workspace);

}  // namespace gimbal
