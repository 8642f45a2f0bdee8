// The three steps of a decision: filter, score, pick, for our policy and for the rivals'.
#include <algorithm>

#include "../spec/random.h"
#include "scheduler.h"

namespace gimbal {
namespace {

using spec::kWholeShare;

// Of a request's prefill, the part by which backlogs are perturbed at the most.
constexpr int64_t kPerturbedBy = 8;
// Of the rivals.
constexpr int64_t kDynamoBlockTokens = 16;
constexpr int64_t kLeastLoadKvUs = 150 * 1000;
constexpr int64_t kLlmDStaleUs = 200 * 1000;
constexpr int64_t kLlmDQueue = 2, kLlmDKv = 2, kLlmDPrefix = 3;

int64_t up(int64_t tokens, int64_t block) { return (tokens + block - 1) / block; }

// k / (1 - k) of a cache that is never quite full.
int64_t kv_ratio_us(int64_t us, int32_t kv) {
  const int64_t used = std::min(kv, kWholeShare - 1);
  return us * used / (kWholeShare - used);
}

}  // namespace

bool Scheduler::may_take(const Engine& e, Stage stage) const {
  const EngineRole other = stage == Stage::kPrefill ? EngineRole::kDecode : EngineRole::kPrefill;
  return e.state == EngineState::kActive && e.role != other;
}

Scheduler::Class Scheduler::filter(const DispatchRequest& request, int64_t now_us, bool sorts) {
  Class best = Class::kStale;
  candidates_.clear();
  for (int32_t i = 0; i < engines(); ++i) {
    const Engine& e = engine(i);
    if (!may_take(e, request.stage)) continue;
    const Class own = sorts ? spec::class_of(is_stale(e, now_us), e.room_tokens, request.prompt_tokens) : Class::kGood;
    if (own > best) continue;
    if (own < best) candidates_.clear();
    best = own;
    candidates_.push_back(i);
  }
  return best;
}

void Scheduler::estimate(const DispatchRequest& request) {
  estimate_cached(request);
  estimate_experts(request);
}

// Tokens that no cache saves. Where the caller does not say, for all engines or for each, a prefix that was sent there before,
// or else the session's last prompt, is taken to be cached; one token is always computed.
void Scheduler::estimate_cached(const DispatchRequest& r) {
  const int64_t all = r.stage == Stage::kDecode ? 0 : r.prompt_tokens;
  differs_ = r.cached_by_engine != nullptr;
  if (differs_) {
    for (int32_t i : candidates_) {
      const int64_t cached = r.cached_by_engine[static_cast<size_t>(i)];
      uncached_[static_cast<size_t>(i)] = std::max(std::min<int64_t>(all, 1), all - cached);
    }
    return;
  }
  uncached_everywhere_ = r.cached_tokens >= 0 ? std::max<int64_t>(std::min<int64_t>(all, 1), all - r.cached_tokens) : all;
  if (r.cached_tokens >= 0 || all == 0) return;
  if (r.prefix_count > 0) {
    differs_ = true;
    const std::vector<int32_t>& matched = prefixes_.match(r.prefix, r.prefix_count);
    for (int32_t i : candidates_) {
      const int64_t cached = all * matched[static_cast<size_t>(i)] / r.prefix_count;
      uncached_[static_cast<size_t>(i)] = std::max<int64_t>(1, all - cached);
    }
  } else if (r.session != 0 && !sessions_.empty()) {
    const Session& session = sessions_[r.session % kSessions];
    if (session.key != r.session || session.engine == kNone) return;
    differs_ = true;
    for (int32_t i : candidates_) uncached_[static_cast<size_t>(i)] = all;
    uncached_[static_cast<size_t>(session.engine)] = std::max<int64_t>(1, all - session.tokens);
  }
}

// Beyond the least of the engines that may take the request, fresh or not: so that a decision and the scores of a batch agree.
void Scheduler::estimate_experts(const DispatchRequest& r) {
  has_affinity_ = r.expert_us != nullptr;
  if (!has_affinity_) return;
  int32_t least = spec::kMostExpertMicros;
  for (int32_t i = 0; i < engines(); ++i) {
    if (may_take(engine(i), r.stage)) least = std::min(least, r.expert_us[i]);
  }
  for (int32_t i = 0; i < engines(); ++i) {
    // One that may not take it can be better than all that may.
    const int32_t own = std::max(least, r.expert_us[i]);
    affinity_us_[static_cast<size_t>(i)] = spec::affinity_micros(options_.weights, own, least);
  }
}

int32_t Scheduler::pick(const DispatchRequest& request, Class of, int64_t now_us, int64_t* score) {
  switch (options_.policy) {
    case DispatchPolicy::kGimbal:
      return of == Class::kStale        ? pick_least_in_flight(now_us, score)
             : of == Class::kShortOfKv ? pick_least_demand(now_us, score)
                                       : pick_gimbal(now_us, score);
    case DispatchPolicy::kVllm:
      return pick_least(score, [&](int32_t i) {
        return int64_t{details(i).waiting + details(i).bumped} * 4 + details(i).running;
      });
    case DispatchPolicy::kTotalTokens:
      return pick_least(score, [&](int32_t i) {
        const Details& d = details(i);
        const int64_t held = ((d.kv_tokens * d.kv) >> spec::kShareBits) + d.waiting_tokens + d.bumped_tokens;
        return std::min(held, int64_t{1} << 38) * spec::kMostRequests + d.waiting + d.running + d.bumped;
      });
    case DispatchPolicy::kRoundRobin:
      return pick_least(score, [](int32_t) { return int64_t{0}; });
    case DispatchPolicy::kPowerOfTwo:
      return pick_power_of_two(score);
    case DispatchPolicy::kLeastLoad:
      return pick_least(score, [&](int32_t i) {
        const Details& d = details(i);
        const int64_t tokens = std::min(d.waiting_tokens + d.prefill_tokens, spec::kMostTokens);
        return spec::prefill_micros(tokens, engine(i).per_token) + kv_ratio_us(kLeastLoadKvUs, d.kv);
      });
    case DispatchPolicy::kDynamo:
      return pick_least(score, [&](int32_t i) {
        return up(details(i).prefill_tokens + uncached_on(i), kDynamoBlockTokens) + up(details(i).decode_tokens, kDynamoBlockTokens);
      });
    case DispatchPolicy::kLlmD:
      return pick_llm_d(request, now_us, score);
  }
  return kNone;
}

// Where equals are looked at in turn, each decision begins one engine further. Several gateways that take turns in step would
// meet at the same engine, so they draw where to begin.
size_t Scheduler::first_in_turn() const {
  const uint64_t n = static_cast<uint64_t>(candidates_.size());
  const uint64_t key = spec::stream_key(options_.seed, 0, 0);
  return static_cast<size_t>((options_.gateways > 1 ? spec::draw(key, decisions_) : key % n + decisions_) % n);
}

template <class Score>
int32_t Scheduler::pick_least(int64_t* score, Score score_of) const {
  const size_t count = candidates_.size();
  const size_t first = first_in_turn();
  int32_t best = kNone;
  for (size_t n = 0; n < count; ++n) {
    const int32_t i = candidates_[first + n < count ? first + n : first + n - count];
    const int64_t own = score_of(i);
    if (best != kNone && own >= *score) continue;
    best = i;
    *score = own;
  }
  return best;
}

int64_t Scheduler::known_us(const Engine& e, int64_t now_us) const {
  return std::min(std::max(e.ready_at_us - now_us, e.least_us), spec::kMostMicros);
}

// A request that is late may have another gateway's in front, which no sample tells once it is begun. The longer it has been in
// the way, the longer it is likely to be still, for long prompts hold an engine up most of the time.
int64_t Scheduler::backlog_us(const Engine& e, int64_t now_us) const {
  return std::max(known_us(e, now_us), others_share(std::clamp<int64_t>(now_us - e.due_us, 0, spec::kMostMicros)));
}

// What other gateways may have sent to an engine, in this decision's eyes. What made us send there made them, who see the same
// samples: so a part of our own counts once more. And since they would all send to the same engine even so, for backlogs are
// rarely equal, each sees them a little differently, in each decision anew.
int64_t Scheduler::unknown_us(int32_t i) const {
  const uint64_t bits = spec::draw(spec::stream_key(options_.seed, i, 0), decisions_) >> 48;
  const int64_t most_us = spec::prefill_micros(mean_tokens(1), engine(i).per_token) / kPerturbedBy;
  return others_share(std::min(details(i).own_us, spec::kMostMicros)) +
         static_cast<int64_t>(bits * static_cast<uint64_t>(most_us) >> 16);
}

// Engines in lockstep wait for the one with the longest prefill. So of a group's engines the one is best that leaves the
// longest backlog of the group, and what the request's experts cost, shortest, and of these the one with the least pressure;
// of the groups' best, the one with the least pressure under the group's backlog. Equals: the first in turn.
int32_t Scheduler::pick_gimbal(int64_t now_us, int64_t* score) {
  find_longest(now_us);
  const spec::PressureWeights& w = options_.weights;
  const size_t count = candidates_.size();
  const size_t first = first_in_turn();
  Choice best;
  for (size_t n = 0; n < count; ++n) {
    const int32_t i = candidates_[first + n < count ? first + n : first + n - count];
    const Engine& e = engine(i);
    const int64_t own_us = spec::prefill_micros(uncached_on(i), e.per_token);
    const int64_t backlog = spec::backlog_term(w, backlog_[static_cast<size_t>(i)], own_us);
    const int64_t affinity = spec::affinity_term(own_us, affinity_on(i));
    const int64_t rest = e.rest_us + spec::moe_term(own_us, e.excess) + affinity;
    Group& group = groups_[static_cast<size_t>(e.group)];
    if (group.members == 1) {
      if (best.engine == kNone || backlog + rest < best.cost_us) best = {i, backlog + rest, backlog, backlog + rest, n};
      continue;
    }
    const int64_t longest = std::max(group.longest_us, backlog);
    const bool is_better = group.best.engine == kNone || longest + affinity < group.best.longest_us ||
                           (longest + affinity == group.best.longest_us && backlog + rest < group.best.total_us);
    if (is_better) group.best = {i, longest + rest, longest + affinity, backlog + rest, n};
  }
  for (const int32_t g : lockstep_) {
    const Choice& own = groups_[static_cast<size_t>(g)].best;
    if (own.engine == kNone) continue;
    const bool is_better = best.engine == kNone || own.cost_us < best.cost_us ||
                           (own.cost_us == best.cost_us && own.turn < best.turn);
    if (is_better) best = own;
  }
  *score = best.total_us;
  return best.engine;
}

// Every engine's backlog, and the longest of each group, whether its engine may take the request or not.
void Scheduler::find_longest(int64_t now_us) {
  for (const int32_t g : lockstep_) {
    Group& group = groups_[static_cast<size_t>(g)];
    group.longest_us = 0;
    group.best = Choice();
  }
  const auto look = [this](auto backlog_of) {
    for (int32_t i = 0; i < engines(); ++i) {
      const Engine& e = engine(i);
      const int64_t us = backlog_of(e, i);
      backlog_[static_cast<size_t>(i)] = us;
      Group& group = groups_[static_cast<size_t>(e.group)];
      if (group.members == 1 || e.state == EngineState::kGone) continue;
      group.longest_us = std::max(group.longest_us, us);
    }
  };
  if (others_ == 0) {
    look([&](const Engine& e, int32_t) { return known_us(e, now_us); });
  } else {
    look([&](const Engine& e, int32_t i) { return backlog_us(e, now_us) + unknown_us(i); });
  }
  for (const int32_t g : lockstep_) {
    Group& group = groups_[static_cast<size_t>(g)];
    group.longest_us = spec::backlog_term(options_.weights, group.longest_us, 0);
  }
}

int32_t Scheduler::pick_least_in_flight(int64_t now_us, int64_t* score) {
  return pick_least(score, [&](int32_t i) {
    return backlog_us(engine(i), now_us) + spec::prefill_micros(uncached_on(i), engine(i).per_token);
  });
}

// Where no engine has room, a request waits for others to end, and prefill does not decide: the engine is best whose cache has
// the least to hold, and of equals the one with the least pressure.
int32_t Scheduler::pick_least_demand(int64_t now_us, int64_t* score) {
  const int32_t best = pick_least(score, [&](int32_t i) {
    return (int64_t{kv_demand(i)} << 38) + std::min(pressure_us(i, now_us), (int64_t{1} << 38) - 1);
  });
  *score = pressure_us(best, now_us);
  return best;
}

int32_t Scheduler::pick_power_of_two(int64_t* score) {
  const uint64_t bits = spec::draw(spec::stream_key(options_.seed, 0, 0), decisions_);
  const int32_t count = static_cast<int32_t>(candidates_.size());
  const int32_t a = spec::below(static_cast<uint32_t>(bits), count);
  const int32_t step = count > 1 ? 1 + spec::below(static_cast<uint32_t>(bits >> 32), count - 1) : 0;
  const auto requests = [this](int32_t i) { return int64_t{details(i).waiting} + details(i).running + details(i).bumped; };
  const int32_t one = candidates_[static_cast<size_t>(a)], two = candidates_[static_cast<size_t>((a + step) % count)];
  *score = std::min(requests(one), requests(two));
  return requests(two) < requests(one) ? two : one;
}

// Each scorer gives 0 to the worst engine and 1 to the best; equals all get 1.
int32_t Scheduler::pick_llm_d(const DispatchRequest& request, int64_t now_us, int64_t* score) {
  const auto stale = [&](int32_t i) { return now_us - engine(i).sampled_us > kLlmDStaleUs; };
  int64_t least_queue = INT64_MAX, most_queue = 0, least_uncached = INT64_MAX, most_uncached = 0;
  for (int32_t i : candidates_) {
    if (!stale(i)) {
      least_queue = std::min<int64_t>(least_queue, details(i).waiting);
      most_queue = std::max<int64_t>(most_queue, details(i).waiting);
    }
    least_uncached = std::min(least_uncached, uncached_on(i));
    most_uncached = std::max(most_uncached, uncached_on(i));
  }
  const auto rank = [](int64_t value, int64_t least, int64_t most) {
    return most == least ? kWholeShare : kWholeShare * (most - value) / (most - least);
  };
  const bool has_prefix = request.prefix_count > 0 || request.session != 0 || request.cached_by_engine != nullptr;
  return pick_least(score, [&](int32_t i) {
    const int64_t queue = stale(i) ? 0 : rank(details(i).waiting, least_queue, most_queue);
    const int64_t kv = stale(i) ? 0 : kWholeShare - details(i).kv;
    const int64_t prefix = has_prefix ? rank(uncached_on(i), least_uncached, most_uncached) : 0;
    return -(kLlmDQueue * queue + kLlmDKv * kv + kLlmDPrefix * prefix);
  });
}

}  // namespace gimbal
