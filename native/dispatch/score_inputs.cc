// A scheduler's ledger as columns. Prefixes and sessions are looked up here, on the scheduler's thread; all that is left to work
// out are formulas.
#include "score_inputs.h"

#include <numeric>

#include "scheduler.h"

namespace gimbal {

// The rivals do not tell classes apart: to them every engine is fresh and has room. Nothing is perturbed, for no decision is made.
ScoreInputs Scheduler::score_inputs(const std::vector<DispatchRequest>& requests, int64_t now_us) {
  const bool sorts = options_.policy == DispatchPolicy::kGimbal;
  forget_stale_experts(now_us);
  ScoreInputs in;
  in.weights = options_.weights;
  for (const Engine& e : engines_) {
    in.backlog_us.push_back(backlog_us(e, now_us));
    in.rest_us.push_back(e.rest_us);
    in.per_token.push_back(e.per_token);
    in.excess.push_back(e.excess);
    in.room_tokens.push_back(sorts ? e.room_tokens : INT32_MAX);
    in.flags.push_back(static_cast<uint8_t>((may_take(e, Stage::kPrefill) ? spec::kTakesPrefill : 0) |
                                            (may_take(e, Stage::kDecode) ? spec::kTakesDecode : 0) |
                                            (sorts && is_stale(e, now_us) ? spec::kIsStale : 0)));
  }
  candidates_.resize(engines_.size());
  std::iota(candidates_.begin(), candidates_.end(), 0);
  for (const DispatchRequest& r : requests) {
    estimate(r);
    in.prompt_tokens.push_back(static_cast<int32_t>(r.prompt_tokens));
    in.uncached_tokens.push_back(static_cast<int32_t>(uncached_everywhere_));
    in.takes.push_back(r.stage == Stage::kDecode ? spec::kTakesDecode : spec::kTakesPrefill);
    in.row.push_back(differs_ ? in.rows++ : -1);
    if (differs_) in.uncached.insert(in.uncached.end(), uncached_.begin(), uncached_.end());
    in.affinity_row.push_back(has_affinity_ ? in.affinity_rows++ : -1);
    if (has_affinity_) in.affinity_us.insert(in.affinity_us.end(), affinity_us_.begin(), affinity_us_.end());
  }
  return in;
}

}  // namespace gimbal
