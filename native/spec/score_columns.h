// What scores are made of: engines as they stand at one time and requests, in columns.
#pragma once

#include "pressure.h"

namespace gimbal {
namespace spec {

// How much an engine may be trusted with a request. A decision looks at the best class that has any engine.
enum class EngineClass : u8 { kGood, kShortOfKv, kStale };

GIMBAL_SPEC EngineClass class_of(bool stale, i32 room_tokens, i64 prompt_tokens) {
  return stale ? EngineClass::kStale : room_tokens < prompt_tokens ? EngineClass::kShortOfKv : EngineClass::kGood;
}

// Of an engine's flags: which stages of a request it takes, and that its last sample is stale.
constexpr u8 kTakesPrefill = 1;
constexpr u8 kTakesDecode = 2;
constexpr u8 kIsStale = 4;

// Engines as they stand at one time, in columns [count].
struct EngineColumns {
  i32 count = 0;
  PressureWeights weights{};
  const i64* backlog_us = nullptr;   // prefill in front of a request that comes now
  const i64* rest_us = nullptr;      // the terms that do not hang on the request, weighted
  const u64* per_token = nullptr;    // micros_per_token
  const i32* excess = nullptr;       // expert_excess
  const i32* room_tokens = nullptr;  // what the KV cache takes before the engine is short of it; -1: it is
  const u8* flags = nullptr;
};

// Requests in columns [count].
struct RequestColumns {
  i32 count = 0;
  const i32* prompt_tokens = nullptr;
  const i32* uncached_tokens = nullptr;  // what every engine would have to compute of it,
  const i32* row = nullptr;              // or, where this is not negative, the row of `uncached` that says it of each
  const u8* takes = nullptr;             // the flag of its stage
  i32 first_row = 0;                     // the number of the first row there is
  i32 rows = 0;
  const i32* uncached = nullptr;  // [rows][engines]
  // The same for what its experts cost on each engine: the row of `affinity_us` that says it, or negative where nothing does.
  const i32* affinity_row = nullptr;
  i32 first_affinity_row = 0;
  i32 affinity_rows = 0;
  const i32* affinity_us = nullptr;  // [affinity_rows][engines], affinity_micros
};

// Of row numbers [count] that rise, negative where there is none: the first, and how many.
GIMBAL_SPEC void rows_of(const i32* row, i32 count, i32* first, i32* rows) {
  *rows = 0;
  for (i32 n = 0; n < count; ++n) {
    if (row[n] < 0) continue;
    if (*rows == 0) *first = row[n];
    ++*rows;
  }
}

// The requests [first, first + count), whose rows are numbered as before. Rows rise with the requests that have one.
GIMBAL_SPEC RequestColumns part_of(const RequestColumns& r, i32 engines, i32 first, i32 count) {
  RequestColumns part = r;
  part.count = count;
  part.prompt_tokens += first;
  part.uncached_tokens += first;
  part.row += first;
  part.takes += first;
  part.affinity_row += first;
  rows_of(part.row, count, &part.first_row, &part.rows);
  rows_of(part.affinity_row, count, &part.first_affinity_row, &part.affinity_rows);
  part.uncached += static_cast<i64>(part.first_row - r.first_row) * engines;
  part.affinity_us += static_cast<i64>(part.first_affinity_row - r.first_affinity_row) * engines;
  return part;
}

// The score of an engine that may not take the request: more than any other.
constexpr i64 kNoScore = INT64_MAX;

}  // namespace spec
}  // namespace gimbal
