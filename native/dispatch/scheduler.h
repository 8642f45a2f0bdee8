// Which engine takes a request: filter, score, pick, over engines' samples and a ledger of what was sent to them since.
//
// The ledger knows every request from its dispatch on, with the prefill it brings. A request leaves the prefill that is
// outstanding when its first token, its end or its failure is told, and an engine works its own off meanwhile at its prefill
// rate. A sample is reconciled by its time: what was sent after it stands beside it, what was sent before is not forgotten, and
// what the engine reports beyond both is foreign: another gateway's.
//
// One thread at a time. A decision allocates nothing, once as many requests have been in flight before.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../spec/score_columns.h"
#include "prefix_index.h"
#include "score_inputs.h"

namespace gimbal {

enum class DispatchPolicy : uint8_t {
  kGimbal,
  kVllm,         // waiting * 4 + running, plus one waiting for each pick until the next sample
  kTotalTokens,  // SGLang: tokens in the cache and waiting, plus each pick's until the next sample
  kRoundRobin,
  kPowerOfTwo,  // of two at random, the one with fewer requests
  kLeastLoad,   // SMG: (queued + in-flight tokens) / rate + 0.15 s * k / (1 - k)
  kDynamo,      // uncached prefill blocks and decode blocks
  kLlmD,        // scorers by rank between least and most: queue 2, KV cache 2, prefix 3
};

enum class EngineRole : uint8_t { kBoth, kPrefill, kDecode };
enum class EngineState : uint8_t { kActive, kDraining, kAsleep, kGone };
enum class Stage : uint8_t { kPrefill, kDecode };

// Why an engine was picked.
enum class PickReason : uint8_t {
  kPressure,       // the least by the policy
  kShortOfKv,      // the same, but every engine is short of KV cache
  kLeastInFlight,  // no engine has a fresh sample: the least of what this scheduler has in flight
};

struct EngineOptions {
  int32_t group = 0;  // engines that run in lockstep share one
  EngineRole role = EngineRole::kBoth;
  int64_t prefill_tokens_per_second = 0;
  int64_t kv_tokens = 0;  // what the KV cache holds; 0: not known
};

struct SchedulerOptions {
  DispatchPolicy policy = DispatchPolicy::kGimbal;
  spec::PressureWeights weights{};
  int64_t stale_after_us = 0;
  int64_t experts_stale_after_us = INT64_MAX / 4;  // of what set_expert_pressure() has told
  int32_t gateways = 1;  // schedulers, this one included, that send to these engines and see the same samples
  uint64_t seed = 0;
};

struct EngineSample {
  static constexpr int64_t kUnknown = -1;
  int32_t engine = 0;
  int64_t time_us = 0;
  int32_t kv = 0;  // of spec::kWholeShare
  int32_t running = 0;
  int32_t waiting = 0;
  int64_t waiting_prefill_tokens = kUnknown;
  int64_t preemptions = kUnknown;  // a counter
  int32_t moe = 0;                 // of spec::kWholeShare
};

// What the placement side says of an engine, both of spec::kWholeShare.
struct ExpertPressure {
  int32_t engine = 0;
  int32_t moe = 0;   // how overloaded the GPUs are that its tokens go to
  int32_t comm = 0;  // how much more time they travel than the fleet's
};

struct DispatchRequest {
  static constexpr int64_t kUnknown = -1;
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = kUnknown;  // on whatever engine; unknown: by prefix, session, or none
  const uint32_t* cached_by_engine = nullptr;  // [engines] the same where engines differ; counts before cached_tokens
  const int32_t* expert_us = nullptr;  // [engines] what its experts cost it on each, 0 to spec::kMostExpertMicros; null: not known
  uint64_t session = 0;              // 0: none
  const uint64_t* prefix = nullptr;  // hashes of the prompt's blocks, each with all before it; equal parts of the prompt
  int64_t prefix_count = 0;
  Stage stage = Stage::kPrefill;
  bool streams = true;  // its first token will be told
};

struct Decision {
  int32_t engine = -1;  // -1: there is none to pick
  int32_t ticket = -1;
  PickReason reason = PickReason::kPressure;
  int64_t score = 0;  // the policy's, least is best; us under kGimbal
};

// What an engine looks like to a request without prefill.
struct EngineReport {
  spec::PressureTerms terms;
  int64_t in_flight_us = 0;  // of prefill that was sent and is not known to be done
  int32_t in_flight = 0;     // requests that have not ended
  bool stale = true;
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  // Engines are known by the order in which they were added.
  int32_t add_engine(const EngineOptions& options);
  void set_state(int32_t engine, EngineState state);
  int32_t engines() const { return static_cast<int32_t>(engines_.size()); }

  // A sample older than the last one of its engine is left out; one from the future of `now_us` counts as of now.
  void observe(const EngineSample& sample, int64_t now_us);
  // Stands in place of what samples tell until it is stale. One that is older than the last one of its engine is left out.
  void set_expert_pressure(const ExpertPressure& pressure, int64_t time_us, int64_t now_us);
  Decision dispatch(const DispatchRequest& request, int64_t now_us);
  // The same where somebody else has picked, perhaps some time ago: its ledger must know.
  Decision dispatch_to(int32_t engine, const DispatchRequest& request, int64_t now_us);
  // visit(engine, pressure in us) for every engine that the filter lets through, the request's own prefill included; with `all`,
  // for every one that may take the request.
  template <class Visit>
  void scores(const DispatchRequest& request, int64_t now_us, bool all, Visit visit) {
    forget_stale_experts(now_us);
    filter(request, now_us, !all && options_.policy == DispatchPolicy::kGimbal);
    estimate(request);
    for (int32_t i : candidates_) visit(i, pressure_us(i, now_us));
  }
  // What the same would be of many requests, by one ledger at one time, for a backend to work out.
  ScoreInputs score_inputs(const std::vector<DispatchRequest>& requests, int64_t now_us);
  // The requests of tickets. A ticket ends with finished() or failed().
  void first_token(int32_t ticket, int64_t now_us);
  void progress(int32_t ticket, int64_t prefilled_tokens, int64_t now_us);
  void finished(int32_t ticket, int64_t now_us);
  void failed(int32_t ticket, int64_t now_us);

  // The engine has lost all that it had: requests sent before are no longer its.
  void restarted(int32_t engine, int64_t now_us);

  EngineReport report(int32_t engine, int64_t now_us);

 private:
  static constexpr int64_t kNever = INT64_MIN / 2;
  static constexpr int32_t kNone = -1;
  static constexpr int64_t kFarOff = INT64_MAX / 2;
  // Of a request that should have had its first token, the part of its prefill that is still assumed to be left.
  static constexpr int64_t kLate = 8;
  static constexpr size_t kSettledKept = 128;  // of an engine
  static constexpr size_t kSessions = size_t{1} << 16;

  // What every decision looks at of every engine: a line of cache each.
  struct alignas(64) Engine {
    int64_t ready_at_us = kNever;  // when it will be through with what is outstanding, at its rate
    int64_t least_us = 0;          // of what this scheduler sent, the prefill that cannot be done yet, whatever the rate
    int64_t due_us = kFarOff;      // when the request that is next should have its first token; far off where none will be told
    int64_t sampled_us = kNever;
    int64_t rest_us = 0;           // the terms that do not hang on the request: KV cache and queue, weighted
    uint64_t per_token = 0;        // spec::micros_per_token
    int32_t room_tokens = 0;       // what the KV cache takes before the engine is short of it; by its samples, and what was sent since
    int32_t excess = 0;            // spec::expert_excess
    int32_t group = 0;
    EngineState state = EngineState::kActive;
    EngineRole role = EngineRole::kBoth;
  };

  struct Settled {
    int64_t dispatched_us = 0;
    int64_t settled_us = kNever;
    int64_t own_us = 0;
    int64_t tokens = 0;
  };

  struct Details {
    int64_t kv_tokens = 0;   // what the cache holds
    int64_t own_us = 0;      // outstanding prefill that this scheduler sent
    int64_t foreign_us = 0;  // outstanding prefill that others sent
    int32_t unseen = 0;      // requests sent after the last sample whose prefill is outstanding,
    int64_t unseen_tokens = 0;  // and the prompts, uncached, of all sent after it
    int32_t in_flight = 0;
    // The last sample.
    int32_t kv = 0;
    int32_t running = 0;
    int32_t waiting = 0;
    int64_t waiting_tokens = 0;
    int64_t preemptions = EngineSample::kUnknown;
    int32_t moe = 0;
    // Of the placement side, and when it is stale.
    int32_t told_moe = 0;
    int32_t told_comm = 0;
    int64_t told_us = kNever;
    int64_t told_until_us = kNever;
    // For the rivals: picks since the last sample and their tokens; tokens of prefill that is outstanding, and of what decodes.
    int32_t bumped = 0;
    int64_t bumped_tokens = 0;
    int64_t prefill_tokens = 0;
    int64_t decode_tokens = 0;
    // Requests whose prefill is outstanding, in the order of dispatch.
    int32_t first = kNone;
    int32_t last = kNone;
    // The last ones whose prefill was done, a ring: a sample that comes late still counts them.
    std::vector<Settled> settled;  // [kSettledKept]
    size_t settled_next = 0;
  };

  struct Ticket {
    int32_t engine = kNone;
    int32_t previous = kNone;
    int32_t next = kNone;
    bool streams = true;
    bool outstanding = false;    // its prefill is
    int64_t dispatched_us = 0;
    int64_t due_us = 0;          // when its prefill should be done
    int64_t own_us = 0;          // of prefill that is left
    int64_t uncached_tokens = 0;
    int64_t prompt_tokens = 0;
  };

  struct Session {
    uint64_t key = 0;
    int32_t engine = kNone;
    int64_t tokens = 0;
  };

  using Class = spec::EngineClass;

  // Filter: fills candidates_ and says of which class they are; without `sorts`, all are of the best.
  Class filter(const DispatchRequest& request, int64_t now_us, bool sorts);
  bool may_take(const Engine& engine, Stage stage) const;
  bool is_stale(const Engine& engine, int64_t now_us) const { return engine.sampled_us < now_us - options_.stale_after_us; }
  // What the request means to each candidate: the tokens that it would have to compute, and what its experts cost there.
  void estimate(const DispatchRequest& request);
  void estimate_cached(const DispatchRequest& request);
  void estimate_experts(const DispatchRequest& request);
  int32_t affinity_on(int32_t engine) const { return has_affinity_ ? affinity_us_[static_cast<size_t>(engine)] : 0; }
  int64_t uncached_on(int32_t engine) const { return differs_ ? uncached_[static_cast<size_t>(engine)] : uncached_everywhere_; }
  // Score and pick, by policy; the engine's score comes back in `score`.
  int32_t pick(const DispatchRequest& request, Class of, int64_t now_us, int64_t* score);
  int32_t pick_gimbal(int64_t now_us, int64_t* score);
  void find_longest(int64_t now_us);
  int32_t pick_least_in_flight(int64_t now_us, int64_t* score);
  int32_t pick_least_demand(int64_t now_us, int64_t* score);
  int32_t kv_demand(int32_t engine) const;
  int32_t pick_power_of_two(int64_t* score);
  int32_t pick_llm_d(const DispatchRequest& request, int64_t now_us, int64_t* score);
  template <class Score>
  int32_t pick_least(int64_t* score, Score score_of) const;
  size_t first_in_turn() const;
  void commit(const DispatchRequest& request, int64_t now_us, Decision* decision);

  int64_t known_us(const Engine& engine, int64_t now_us) const;
  int64_t backlog_us(const Engine& engine, int64_t now_us) const;
  void claim_foreign(int32_t engine);
  int64_t pressure_us(int32_t engine, int64_t now_us) const;
  // Of up to kMostMicros: the share of the other gateways, as far as they do not tell.
  int64_t others_share(int64_t us) const { return us * std::max<int64_t>(0, others_ - told_) >> spec::kShareBits; }
  int64_t unknown_us(int32_t engine) const;
  int64_t mean_tokens(int32_t requests) const;
  void refresh(int32_t engine);
  void refresh_experts(int32_t engine);
  void forget_stale_experts(int64_t now_us) {
    if (now_us >= experts_until_us_) forget_experts(now_us);
  }
  void forget_experts(int64_t now_us);
  Engine& engine(int32_t i) { return engines_[static_cast<size_t>(i)]; }
  const Engine& engine(int32_t i) const { return engines_[static_cast<size_t>(i)]; }
  Details& details(int32_t i) { return details_[static_cast<size_t>(i)]; }
  const Details& details(int32_t i) const { return details_[static_cast<size_t>(i)]; }
  Ticket& ticket(int32_t t) { return tickets_[static_cast<size_t>(t)]; }
  int32_t take_ticket();
  void link(int32_t ticket);
  void settle(int32_t ticket, int64_t now_us);  // its prefill is no longer outstanding
  void settle_with_earlier(int32_t ticket, int64_t now_us);
  void settle_silent(int32_t engine, int32_t waiting, int64_t time_us, int64_t now_us);
  void forget_before(int32_t engine, int64_t time_us, int64_t now_us);
  void look_at_next(int32_t engine);
  void anchor(int32_t engine, int64_t now_us);
  void release(int32_t ticket);

  const SchedulerOptions options_;
  std::vector<Engine> engines_;
  std::vector<Details> details_;  // [engines]
  std::vector<Ticket> tickets_;
  std::vector<int32_t> free_;
  PrefixIndex prefixes_;
  std::vector<Session> sessions_;
  uint64_t decisions_ = 0;
  int64_t experts_until_us_ = kFarOff;  // when the first of what the placement side has told is stale
  int64_t mean_sum_ = 0;  // the mean of uncached tokens of late, times the requests that it is over

  // Scratch of a decision; [engines] unless said otherwise.
  std::vector<int32_t> candidates_;  // [found]
  bool differs_ = false;             // whether engines hold different parts of the request:
  int64_t uncached_everywhere_ = 0;  // what each has to compute,
  std::vector<int64_t> uncached_;    // or what each by itself
  std::vector<int64_t> backlog_;     // us
  bool has_affinity_ = false;        // whether it is known what its experts cost on the engines:
  std::vector<int32_t> affinity_us_;  // spec::affinity_micros
  struct Choice {
    int32_t engine = kNone;
    int64_t cost_us = 0;     // its pressure under the longest backlog of its group,
    int64_t longest_us = 0;  // which is this with the request on it, what its experts cost included
    int64_t total_us = 0;    // its pressure
    size_t turn = 0;
  };
  struct Group {
    int32_t members = 0;
    int64_t longest_us = 0;  // backlog; weighted, once all are known
    Choice best;
  };
  std::vector<Group> groups_;      // by group
  std::vector<int32_t> lockstep_;  // groups of two engines or more
  const int64_t others_;  // the other gateways' share of what is sent, of spec::kWholeShare,
  int64_t told_ = 0;      // and the share of late that others have told, as dispatch_to() takes it
};

}  // namespace gimbal
