// Scores: the pressure of every engine on every request of many, and for each request the best engine. A row of scores is one
// request's; rows share nothing, so a Team takes one at a time.
#pragma once

#include "score_columns.h"

namespace gimbal {
namespace spec {

// Sums of the weighted terms stay within 2^54, so a class fits above them.
constexpr int kClassShift = 56;

// Fills scores [engines], us, and returns the best engine: of the best class, the least (score, engine); -1 where none may take
// the request. There is one engine at least.
template <class Team>
GIMBAL_OVER_TEAM i32 score_request(Team& team, const EngineColumns& engines, const RequestColumns& requests, i32 request,
                                   i64* scores) {
  const EngineColumns e = engines;
  const u8 takes = requests.takes[request];
  const i32 prompt_tokens = requests.prompt_tokens[request];
  const i32 known = requests.affinity_row[request];
  const i32* const affinity =
      known < 0 ? nullptr : requests.affinity_us + static_cast<i64>(known - requests.first_affinity_row) * e.count;
  const auto score_on = [=](i32 i, i32 uncached_tokens) GIMBAL_LAMBDA {
    const i64 own_us = prefill_micros(uncached_tokens, e.per_token[i]);
    const i32 affinity_us = affinity == nullptr ? 0 : affinity[i];
    const i64 us = pressure_micros(e.weights, e.backlog_us[i], own_us, e.rest_us[i], e.excess[i], affinity_us);
    return (e.flags[i] & takes) != 0 ? us : kNoScore;
  };
  const i32 row = requests.row[request];
  if (row < 0) {
    const i32 everywhere = requests.uncached_tokens[request];
    team.for_each(e.count, [=](i32 i) GIMBAL_LAMBDA { scores[i] = score_on(i, everywhere); });
  } else {
    const i32* const uncached = requests.uncached + static_cast<i64>(row - requests.first_row) * e.count;
    team.for_each(e.count, [=](i32 i) GIMBAL_LAMBDA { scores[i] = score_on(i, uncached[i]); });
  }
  const auto rank = [=](i32 i) GIMBAL_LAMBDA {
    const EngineClass own = class_of((e.flags[i] & kIsStale) != 0, e.room_tokens[i], prompt_tokens);
    return scores[i] == kNoScore ? kNoScore : (static_cast<i64>(own) << kClassShift) + scores[i];
  };
  const i64 least = -team.max(e.count, [=](i32 i) GIMBAL_LAMBDA { return -rank(i); });
  if (least == kNoScore) return -1;
  return team.argmin(e.count, [=](i32 i) GIMBAL_LAMBDA { return rank(i) == least ? 0 : 1; }).index;
}

}  // namespace spec
}  // namespace gimbal
