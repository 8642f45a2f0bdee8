// What scores are made of, taken out of a scheduler: whoever works them out needs neither the scheduler nor its thread.
#pragma once

#include <cstdint>
#include <vector>

#include "../spec/score_columns.h"

namespace gimbal {

struct ScoreInputs {
  spec::PressureWeights weights{};
  // See spec::EngineColumns; [engines].
  std::vector<int64_t> backlog_us;
  std::vector<int64_t> rest_us;
  std::vector<uint64_t> per_token;
  std::vector<int32_t> excess;
  std::vector<int32_t> room_tokens;
  std::vector<uint8_t> flags;
  // See spec::RequestColumns; [requests].
  std::vector<int32_t> prompt_tokens;
  std::vector<int32_t> uncached_tokens;
  std::vector<int32_t> row;
  std::vector<uint8_t> takes;
  int32_t rows = 0;
  std::vector<int32_t> uncached;  // [rows][engines]
  std::vector<int32_t> affinity_row;
  int32_t affinity_rows = 0;
  std::vector<int32_t> affinity_us;  // [affinity_rows][engines]

  spec::EngineColumns engines() const {
    return {static_cast<int32_t>(flags.size()), weights,       backlog_us.data(),  rest_us.data(),
            per_token.data(),                   excess.data(), room_tokens.data(), flags.data()};
  }
  spec::RequestColumns requests() const {
    return {static_cast<int32_t>(row.size()), prompt_tokens.data(), uncached_tokens.data(), row.data(),
            takes.data(),                     0,                    rows,                   uncached.data(),
            affinity_row.data(),              0,                    affinity_rows,          affinity_us.data()};
  }
};

}  // namespace gimbal
