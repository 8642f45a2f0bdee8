// The scheduler against a plain one that keeps lists and adds them up anew for every decision; each rule by a case worked by
// hand; the rivals by their formulas; and what a decision may not do: allocate, or depend on how it was asked.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <utility>
#include <vector>

#include "../dispatch/scheduler.h"
#include "random.h"

namespace gimbal {
namespace {

constexpr int64_t kMs = 1000;
constexpr int64_t kSecond = 1000 * kMs;
constexpr uint32_t kOne = 1u << spec::kShareBits;

// A token takes exactly 1 ms.
constexpr int64_t kRate = 1000;

SchedulerOptions options(DispatchPolicy policy = DispatchPolicy::kGimbal) {
  SchedulerOptions o;
  o.policy = policy;
  o.weights = {kOne, kOne, kOne, kOne, kOne, kOne, 150 * kMs, static_cast<int32_t>(kOne * 9 / 10), 2 * kMs, 200};
  o.stale_after_us = 3 * kSecond;
  return o;
}

EngineOptions engine(int32_t group = 0, EngineRole role = EngineRole::kBoth) {
  EngineOptions e;
  e.group = group;
  e.role = role;
  e.prefill_tokens_per_second = kRate;
  e.kv_tokens = 100000;
  return e;
}

EngineSample sample(int32_t i, int64_t time_us, int32_t running = 0, int32_t waiting = 0, int64_t waiting_tokens = 0,
                    double kv = 0) {
  EngineSample s;
  s.engine = i;
  s.time_us = time_us;
  s.kv = static_cast<int32_t>(kv * spec::kWholeShare);
  s.running = running;
  s.waiting = waiting;
  s.waiting_prefill_tokens = waiting_tokens;
  return s;
}

DispatchRequest prompt(int64_t tokens) {
  DispatchRequest r;
  r.prompt_tokens = tokens;
  return r;
}

Scheduler scheduler_of(int32_t count, const SchedulerOptions& o = options()) {
  Scheduler s(o);
  for (int32_t i = 0; i < count; ++i) s.add_engine(engine());
  return s;
}

void observe_all(Scheduler* s, int64_t time_us) {
  for (int32_t i = 0; i < s->engines(); ++i) s->observe(sample(i, time_us), time_us);
}

// ---- formulas

TEST_CASE("pressure: terms are what their definitions give, rounded down") {
  test::Random random(1);
  INFO("seed " << test::base_seed());
  const spec::PressureWeights w = options().weights;
  for (int n = 0; n < 20000; ++n) {
    const int64_t us = static_cast<int64_t>(random.any_magnitude(44));
    const uint32_t weight = static_cast<uint32_t>(random.any_magnitude(24));
    REQUIRE(spec::weighted(us, weight) == static_cast<int64_t>(static_cast<unsigned __int128>(us) * weight >> 16));
    const int64_t rate = 100 + static_cast<int64_t>(random.any_magnitude(29));
    const int64_t tokens = static_cast<int64_t>(random.any_magnitude(28));
    const double exact = 1e6 * static_cast<double>(tokens) / static_cast<double>(rate);
    REQUIRE(std::fabs(static_cast<double>(spec::prefill_micros(tokens, spec::micros_per_token(rate))) - exact) <=
            1 + static_cast<double>(tokens) / (1 << 21));
  }
  CHECK(spec::kv_micros(w, spec::kWholeShare / 2) == 150 * kMs);
  CHECK(spec::kv_micros(w, 0) == 0);
  CHECK(spec::kv_micros(w, spec::kWholeShare) == spec::kv_micros(w, w.kv_most));
  int64_t step = 0;
  for (int32_t kv = 1; kv <= w.kv_most; kv += 997) {
    const int64_t rise = spec::kv_micros(w, kv) - spec::kv_micros(w, kv - 1);
    CHECK(rise + 1 >= step);
    step = rise;
  }
  CHECK(spec::moe_term(1000, kOne / 2) == 500);
  CHECK(spec::moe_term(1000, -static_cast<int32_t>(kOne) / 4) == -250);
  // Half of 0.5 and a quarter of -0.2, of a whole; a sum below -1 counts as that.
  const spec::PressureWeights some{kOne, kOne, kOne, kOne / 2, kOne / 4, kOne, 0, 0, 0, 0};
  CHECK(spec::expert_excess(some, 32768, -13107) == 16384 - 3277);
  CHECK(spec::expert_excess(w, -60000, -60000) == -65536);
  CHECK(spec::expert_excess({0, 0, 0, 1u << 24, 1u << 24, 0, 0, 0, 0, 0}, 6553600, 6553600) == std::numeric_limits<int32_t>::max());
  CHECK(spec::affinity_micros(w, 900, 400) == 500);
  CHECK(spec::affinity_micros({0, 0, 0, 0, 0, kOne / 2, 0, 0, 0, 0}, 900, 400) == 250);
  CHECK(spec::affinity_micros({0, 0, 0, 0, 0, 1u << 24, 0, 0, 0, 0}, spec::kMostExpertMicros, 0) == spec::kMostExpertMicros);
  CHECK(spec::affinity_term(300, 500) == 300);
  CHECK(spec::affinity_term(700, 500) == 500);
  CHECK(spec::queue_micros(w, 3, 10) == 3 * 2 * kMs + 10 * 200);
  // At the limits of everything, sums stay positive.
  const int64_t most = spec::backlog_term({1u << 24, 0, 0, 0, 0, 0, 0, 0, 0, 0}, spec::kMostMicros, spec::kMostMicros);
  CHECK(most > 0);
  CHECK(most < std::numeric_limits<int64_t>::max() / 8);
}

// ---- the ledger

TEST_CASE("scheduler: a sample never erases what was sent after it, nor what is older and not known to be done") {
  Scheduler s = scheduler_of(1);
  s.observe(sample(0, kSecond), kSecond);
  const Decision before = s.dispatch(prompt(300), kSecond + 10 * kMs);
  s.dispatch(prompt(500), kSecond + 90 * kMs);
  CHECK(s.report(0, kSecond + 90 * kMs).in_flight_us == 800 * kMs);
  // The engine looks idle: the first request may still be on its way, the second one cannot be seen yet.
  s.observe(sample(0, kSecond + 50 * kMs), kSecond + 100 * kMs);
  CHECK(s.report(0, kSecond + 100 * kMs).in_flight_us == 800 * kMs);
  s.first_token(before.ticket, kSecond + 310 * kMs);
  CHECK(s.report(0, kSecond + 310 * kMs).in_flight_us == 500 * kMs);
  CHECK(s.report(0, kSecond + 310 * kMs).terms.backlog_us == 500 * kMs);
}

TEST_CASE("scheduler: what an engine reports beyond our own is foreign backlog, until a request sent later is through") {
  Scheduler s = scheduler_of(1);
  const int64_t t = 10 * kSecond;
  s.dispatch(prompt(200), t - kSecond / 2);
  s.observe(sample(0, t, 1, 3, 1000), t);
  CHECK(s.report(0, t).terms.backlog_us == 1000 * kMs);
  const Decision later = s.dispatch(prompt(100), t);
  s.observe(sample(0, t + kMs, 1, 3, 1000), t + kMs);
  // Our 300 are among the 1000, and of the foreign 800 nearly all is still to do: 700 wait, and 99 have been begun.
  CHECK(s.report(0, t + kMs).terms.backlog_us == 1099 * kMs);
  const Decision last = s.dispatch(prompt(50), t + 2 * kMs);
  CHECK(s.report(0, t + 2 * kMs).terms.backlog_us == 1099 * kMs - kMs + 50 * kMs);
  s.first_token(last.ticket, t + 900 * kMs);
  CHECK(s.report(0, t + 900 * kMs).terms.backlog_us == 300 * kMs);  // what is foreign came before
  s.finished(later.ticket, t + 950 * kMs);
}

TEST_CASE("scheduler: foreign work that waits no more has been begun, and is not done at once") {
  Scheduler s = scheduler_of(1);
  s.observe(sample(0, 0, 0, 1, 1000), 0);
  s.observe(sample(0, 100 * kMs, 1, 0, 0), 100 * kMs);
  CHECK(s.report(0, 100 * kMs).terms.backlog_us == 900 * kMs);
  s.observe(sample(0, 200 * kMs, 1, 1, 850), 200 * kMs);
  CHECK(s.report(0, 200 * kMs).terms.backlog_us == 850 * kMs);
  s.observe(sample(0, kSecond, 1, 0, 0), kSecond);
  CHECK(s.report(0, 2 * kSecond).terms.backlog_us == 0);
}

TEST_CASE("scheduler: what another gateway tells late is not foreign any more") {
  Scheduler s(options());
  s.add_engine(engine());
  const int64_t t = kSecond;
  s.observe(sample(0, t, 0, 2, 700), t);  // of which 500 are told of below
  s.dispatch_to(0, prompt(500), t - 5 * kMs);
  CHECK(s.report(0, t).terms.backlog_us == 700 * kMs);
  CHECK(s.report(0, t).terms.queue_us == 2 * 2 * kMs);
  s.dispatch_to(0, prompt(500), t + kMs);  // one that no sample can show stands beside them
  CHECK(s.report(0, t + kMs).terms.backlog_us == 1199 * kMs);
  CHECK(s.report(0, t + kMs).terms.queue_us == 3 * 2 * kMs);
}

TEST_CASE("scheduler: an engine works its backlog off at its rate, and one that is late keeps a part of it") {
  Scheduler s = scheduler_of(1);
  s.observe(sample(0, 0), 0);
  const Decision d = s.dispatch(prompt(800), 0);
  CHECK(s.report(0, 300 * kMs).terms.backlog_us == 500 * kMs);
  CHECK(s.report(0, 5 * kSecond).terms.backlog_us == 100 * kMs);  // an eighth: nobody saw the first token
  s.progress(d.ticket, 600, 5 * kSecond);
  CHECK(s.report(0, 5 * kSecond).terms.backlog_us == 200 * kMs);
  s.finished(d.ticket, 6 * kSecond);
  CHECK(s.report(0, 6 * kSecond).terms.backlog_us == 0);
  CHECK(s.report(0, 6 * kSecond).in_flight == 0);
}

TEST_CASE("scheduler: what is behind a request that is late is still to be done, unless the request is silent") {
  for (const bool streams : {true, false}) {
    CAPTURE(streams);
    Scheduler s = scheduler_of(1);
    s.observe(sample(0, 0), 0);
    DispatchRequest first = prompt(800);
    first.streams = streams;
    s.dispatch(first, 0);
    const Decision second = s.dispatch(prompt(400), 0);
    s.dispatch(prompt(160), 0);
    CHECK(s.report(0, 300 * kMs).terms.backlog_us == 1060 * kMs);
    CHECK(s.report(0, 5 * kSecond).terms.backlog_us == (streams ? 100 + 400 + 160 : 170) * kMs);
    s.failed(second.ticket, 5 * kSecond);
    CHECK(s.report(0, 5 * kSecond).terms.backlog_us == (streams ? 100 + 160 : 120) * kMs);
  }
}

TEST_CASE("scheduler: with other gateways, a request that is late has something in front of it") {
  for (const int32_t gateways : {1, 2, 4}) {
    CAPTURE(gateways);
    SchedulerOptions o = options();
    o.gateways = gateways;
    Scheduler s = scheduler_of(1, o);
    s.observe(sample(0, 0), 0);
    const Decision first = s.dispatch(prompt(80), 0);
    const Decision second = s.dispatch(prompt(40), 0);
    // Due at 80 ms, and 920 ms late: the share of the others is left.
    CHECK(s.report(0, kSecond).terms.backlog_us == (gateways == 1 ? 50 : gateways == 2 ? 460 : 690) * kMs);
    // Only now the second one can have begun.
    s.first_token(first.ticket, kSecond);
    CHECK(s.report(0, kSecond + 40 * kMs).terms.backlog_us == 5 * kMs);
    CHECK(s.report(0, kSecond + 140 * kMs).terms.backlog_us == (gateways == 1 ? 5 : gateways == 2 ? 50 : 75) * kMs);
    // What is seen to go on is not late.
    s.progress(second.ticket, 20, kSecond + 140 * kMs);
    CHECK(s.report(0, kSecond + 160 * kMs).terms.backlog_us == 20 * kMs / 8);
    s.first_token(second.ticket, 2 * kSecond);
    CHECK(s.report(0, 3 * kSecond).terms.backlog_us == 0);
  }
}

TEST_CASE("scheduler: what other gateways tell need not be guessed, until they tell no more") {
  SchedulerOptions o = options();
  o.gateways = 2;
  Scheduler s = scheduler_of(2, o);
  observe_all(&s, 0);
  const auto send = [&](bool told) {
    s.finished((told ? s.dispatch_to(1, prompt(1), 0) : s.dispatch(prompt(1), 0)).ticket, 0);
  };
  for (int n = 0; n < 1000; ++n) send(n % 2 == 0);
  const Decision late = s.dispatch_to(0, prompt(80), 0);
  // 920 ms late; what is guessed is at most what one in 64 requests changes.
  CHECK(s.report(0, kSecond).terms.backlog_us <= 920 * kMs / 64);
  for (int n = 0; n < 1000; ++n) send(false);
  CHECK(s.report(0, kSecond).terms.backlog_us >= 450 * kMs);
  CHECK(s.report(0, kSecond).terms.backlog_us <= 460 * kMs);
  s.finished(late.ticket, kSecond);
}

TEST_CASE("scheduler: with other gateways, a part of what was sent counts once more") {
  for (const int32_t gateways : {1, 2}) {
    CAPTURE(gateways);
    SchedulerOptions o = options();
    o.gateways = gateways;
    Scheduler s = scheduler_of(2, o);
    s.observe(sample(0, 0, 0, 1, 1000), 0);
    s.observe(sample(1, 0), 0);
    s.dispatch_to(1, prompt(900), 0);
    // 1000 against 900 of our own, or 1350; neither is perturbed by more than 113.
    CHECK(s.dispatch(prompt(10), 0).engine == (gateways == 1 ? 1 : 0));
  }
}

TEST_CASE("scheduler: a failed request takes its prefill with it") {
  Scheduler s = scheduler_of(1);
  s.observe(sample(0, 0), 0);
  s.dispatch(prompt(400), 0);
  const Decision d = s.dispatch(prompt(300), 0);
  s.failed(d.ticket, 100 * kMs);
  CHECK(s.report(0, 100 * kMs).terms.backlog_us == 300 * kMs);
  CHECK(s.report(0, 100 * kMs).in_flight == 1);
}

TEST_CASE("scheduler: a restart drops what was sent before, by its counter and by word") {
  for (const bool by_word : {false, true}) {
    CAPTURE(by_word);
    Scheduler s = scheduler_of(1);
    EngineSample one = sample(0, 0);
    one.preemptions = 7;
    s.observe(one, 0);
    const Decision before = s.dispatch(prompt(400), 100 * kMs);
    const Decision after = s.dispatch(prompt(100), 300 * kMs);
    if (by_word) {
      s.restarted(0, 200 * kMs);
    } else {
      one = sample(0, 200 * kMs);
      one.preemptions = 0;
      s.observe(one, 310 * kMs);
    }
    CHECK(s.report(0, 310 * kMs).in_flight_us == 100 * kMs);
    s.failed(before.ticket, 320 * kMs);
    s.finished(after.ticket, 400 * kMs);
    CHECK(s.report(0, 400 * kMs).in_flight_us == 0);
    CHECK(s.report(0, 400 * kMs).in_flight == 0);
  }
}

TEST_CASE("scheduler: a late sample that still shows what we have seen done since is not foreign") {
  Scheduler s = scheduler_of(1);
  s.observe(sample(0, 0), 0);
  const Decision d = s.dispatch(prompt(400), 100 * kMs);
  s.dispatch(prompt(300), 110 * kMs);
  s.first_token(d.ticket, 600 * kMs);
  // Taken at 200 ms, when both waited; seen now.
  s.observe(sample(0, 200 * kMs, 0, 2, 700), 700 * kMs);
  CHECK(s.report(0, 700 * kMs).terms.backlog_us == 200 * kMs);  // 300 since the first token at 600 ms
  // Without word of the prefill that waits, by their number.
  EngineSample one = sample(0, 210 * kMs, 0, 2);
  one.waiting_prefill_tokens = EngineSample::kUnknown;
  s.observe(one, 700 * kMs);
  CHECK(s.report(0, 700 * kMs).terms.backlog_us == 200 * kMs);
}

TEST_CASE("scheduler: what was sent counts against the KV cache before a sample can show it") {
  Scheduler s = scheduler_of(2);
  s.observe(sample(0, 0, 0, 0, 0, 0.5), 0);
  s.observe(sample(1, 0, 0, 0, 50000, 0.1), 0);
  // 90,000 tokens are room; 50,000 are used on both, and engine 1 has the prefill in front of it.
  const Decision d = s.dispatch(prompt(30000), kMs);
  CHECK(d.engine == 0);
  s.first_token(d.ticket, 2 * kMs);
  const Decision next = s.dispatch(prompt(20000), 3 * kMs);
  CHECK(next.engine == 1);
  CHECK(next.reason == PickReason::kPressure);
  // Neither has room for 40,000: engine 1 has 80,000 to hold, engine 0 has 80,000 as well; then engine 0 has less in front.
  const Decision last = s.dispatch(prompt(40000), 4 * kMs);
  CHECK(last.reason == PickReason::kShortOfKv);
  CHECK(last.engine == 1 - s.dispatch(prompt(40000), 4 * kMs).engine);
}

TEST_CASE("scheduler: silent requests are settled by what a sample does not count as waiting") {
  Scheduler s = scheduler_of(1);
  s.observe(sample(0, 0), 0);
  DispatchRequest silent = prompt(200);
  silent.streams = false;
  std::vector<int32_t> tickets;
  for (int n = 0; n < 4; ++n) tickets.push_back(s.dispatch(silent, n * kMs).ticket);
  // Two still wait; of the other two one may be being worked on.
  s.observe(sample(0, 300 * kMs, 2, 2, 400), 300 * kMs);
  CHECK(s.report(0, 300 * kMs).in_flight_us == 600 * kMs);
  // Its time is over, too.
  s.observe(sample(0, 450 * kMs, 2, 2, 400), 450 * kMs);
  CHECK(s.report(0, 450 * kMs).in_flight_us == 400 * kMs);
  s.observe(sample(0, 900 * kMs, 4, 0, 0), 900 * kMs);
  CHECK(s.report(0, 900 * kMs).in_flight_us == 0);
  for (int32_t ticket : tickets) s.finished(ticket, kSecond);
  CHECK(s.report(0, kSecond).in_flight == 0);
}

TEST_CASE("scheduler: samples that come late or from the future do no harm") {
  Scheduler s = scheduler_of(1);
  s.observe(sample(0, 2 * kSecond, 0, 0, 500), 2 * kSecond);
  s.observe(sample(0, kSecond, 0, 0, 0), 2 * kSecond);
  CHECK(s.report(0, 2 * kSecond).terms.backlog_us == 500 * kMs);
  s.observe(sample(0, 100 * kSecond, 0, 5), 2 * kSecond);
  CHECK(s.report(0, 2 * kSecond).terms.queue_us == 5 * 2 * kMs);
  s.observe(sample(0, 2 * kSecond + kMs, 0, 7), 2 * kSecond + kMs);
  CHECK(s.report(0, 2 * kSecond + kMs).terms.queue_us == 7 * 2 * kMs);
}

// ---- filter and pick

TEST_CASE("scheduler: engines that drain, sleep, are gone or have another role get nothing") {
  Scheduler s(options());
  s.add_engine(engine(0, EngineRole::kPrefill));
  s.add_engine(engine(0, EngineRole::kDecode));
  s.add_engine(engine());
  observe_all(&s, 0);
  DispatchRequest decode = prompt(100);
  decode.stage = Stage::kDecode;
  for (int n = 0; n < 12; ++n) CHECK(s.dispatch(prompt(100), 0).engine != 1);
  for (int n = 0; n < 12; ++n) CHECK(s.dispatch(decode, 0).engine != 0);
  for (EngineState state : {EngineState::kDraining, EngineState::kAsleep, EngineState::kGone}) {
    s.set_state(2, state);
    for (int n = 0; n < 4; ++n) CHECK(s.dispatch(prompt(100), 0).engine == 0);
    s.set_state(0, state);
    CHECK(s.dispatch(prompt(100), 0).engine == -1);
    s.set_state(0, EngineState::kActive);
  }
  s.set_state(2, EngineState::kActive);
  CHECK(s.dispatch(prompt(100), 0).engine == 2);
}

TEST_CASE("scheduler: stale samples count as saturated; where all are, the least in flight is taken") {
  Scheduler s = scheduler_of(3);
  s.observe(sample(0, 9 * kSecond, 0, 5, 5000), 9 * kSecond);
  s.observe(sample(1, kSecond), kSecond);
  Decision d = s.dispatch(prompt(100), 10 * kSecond);
  CHECK(d.engine == 0);
  CHECK(d.reason == PickReason::kPressure);
  const int64_t late = 30 * kSecond;
  std::vector<int32_t> picks;
  for (int n = 0; n < 3; ++n) {
    d = s.dispatch(prompt(100), late);
    CHECK(d.reason == PickReason::kLeastInFlight);
    picks.push_back(d.engine);
  }
  std::sort(picks.begin(), picks.end());
  CHECK(picks == std::vector<int32_t>{0, 1, 2});
}

TEST_CASE("scheduler: an engine short of KV cache gets nothing while another is not") {
  Scheduler s = scheduler_of(2);
  s.observe(sample(0, 0, 0, 0, 0, 0.95), 0);
  s.observe(sample(1, 0, 0, 9, 9000, 0.5), 0);
  CHECK(s.dispatch(prompt(10), 0).engine == 1);
  s.observe(sample(1, kMs, 0, 9, 9000, 0.97), kMs);
  const Decision d = s.dispatch(prompt(10), kMs);
  CHECK(d.engine == 0);
  CHECK(d.reason == PickReason::kShortOfKv);
}

TEST_CASE("scheduler: an engine whose cache has no known size is short of it by its samples alone") {
  Scheduler s(options());
  EngineOptions unknown = engine();
  unknown.kv_tokens = 0;
  for (int32_t i = 0; i < 2; ++i) s.add_engine(unknown);
  s.observe(sample(0, 0, 0, 0, 0, 0.92), 0);
  s.observe(sample(1, 0, 0, 0, 9000, 0.85), 0);
  CHECK(s.dispatch(prompt(100000), 0).engine == 1);
  CHECK(s.dispatch(prompt(100000), 0).reason == PickReason::kPressure);
}

TEST_CASE("scheduler: an engine that is gone does not hold its group up, one that drains does") {
  for (const bool gone : {false, true}) {
    CAPTURE(gone);
    Scheduler s = scheduler_of(3);
    s.observe(sample(0, 0, 0, 0, 5000), 0);
    s.observe(sample(1, 0, 0, 0, 100, 0.85), 0);
    s.observe(sample(2, 0, 0, 0, 200), 0);
    s.set_state(0, gone ? EngineState::kGone : EngineState::kDraining);
    // Beside 5000 either will do, and engine 1 is dear by its cache; alone, 100 is less than 200.
    CHECK(s.dispatch(prompt(10), 0).engine == (gone ? 1 : 2));
  }
}

TEST_CASE("scheduler: in lockstep the longest backlog counts first, across groups the pressure") {
  // One group: engine 1 has the least backlog by little, and most of its cache in use.
  const auto observe = [](Scheduler* s) {
    s->observe(sample(0, 0, 0, 0, 1000), 0);
    s->observe(sample(1, 0, 0, 0, 300, 0.85), 0);
    s->observe(sample(2, 0, 0, 0, 400, 0.1), 0);
  };
  Scheduler together = scheduler_of(3);
  observe(&together);
  // 500 more leave the longest at 1000 on either: pressure decides, and the KV term of engine 1 is 850 ms.
  CHECK(together.dispatch(prompt(500), 0).engine == 2);
  Scheduler long_one = scheduler_of(3);
  observe(&long_one);
  // 650 more make 1050 of engine 2, but only 950 of engine 1.
  CHECK(long_one.dispatch(prompt(650), 0).engine == 1);
  Scheduler apart(options());
  for (int32_t i = 0; i < 3; ++i) apart.add_engine(engine(i));
  observe(&apart);
  CHECK(apart.dispatch(prompt(650), 0).engine == 2);
}

TEST_CASE("scheduler: equals are taken in turn, and gateways of one fleet begin apart") {
  Scheduler s = scheduler_of(4);
  observe_all(&s, 0);
  std::vector<int32_t> picks;
  for (int n = 0; n < 8; ++n) {
    const Decision d = s.dispatch(prompt(0), 0);
    picks.push_back(d.engine);
    s.finished(d.ticket, 0);
  }
  for (int n = 0; n < 4; ++n) CHECK(std::count(picks.begin(), picks.end(), n) == 2);
  SchedulerOptions a = options(), b = options();
  a.gateways = b.gateways = 2;
  for (b.seed = 1; b.seed < 30; ++b.seed) {
    Scheduler one = scheduler_of(8, a), two = scheduler_of(8, b);
    observe_all(&one, 0);
    observe_all(&two, 0);
    int together = 0;
    for (int n = 0; n < 200; ++n) {
      const Decision d = one.dispatch(prompt(0), 0), e = two.dispatch(prompt(0), 0);
      together += d.engine == e.engine ? 1 : 0;
      one.finished(d.ticket, 0);
      two.finished(e.ticket, 0);
    }
    CAPTURE(b.seed);
    CHECK(together < 60);  // one in eight, if they are apart
    CHECK(together > 0);
  }
}

TEST_CASE("scheduler: one of several gateways does not always take the least of backlogs that are nearly equal") {
  for (const int32_t gateways : {1, 2}) {
    CAPTURE(gateways);
    SchedulerOptions o = options();
    o.gateways = gateways;
    Scheduler s = scheduler_of(3, o);
    std::vector<int32_t> count(3, 0);
    for (int n = 0; n < 400; ++n) {
      const int64_t now_us = n * kSecond;
      s.observe(sample(0, now_us, 0, 0, 1000), now_us);
      s.observe(sample(1, now_us, 0, 0, 1010), now_us);
      s.observe(sample(2, now_us, 0, 0, 1200), now_us);
      const Decision d = s.dispatch(prompt(400), now_us);
      ++count[static_cast<size_t>(d.engine)];
      s.finished(d.ticket, now_us);
    }
    CHECK(count[2] == 0);  // an eighth of 400 is less than the difference
    if (gateways == 1) {
      CHECK(count[1] == 0);
    } else {
      CHECK(count[0] > count[1]);
      CHECK(count[1] > 50);
    }
  }
}

TEST_CASE("scheduler: where an engine does not say what its requests need, those beyond our own count as the mean") {
  Scheduler s = scheduler_of(1);
  s.observe(sample(0, 0), 0);
  s.dispatch(prompt(400), kMs);
  EngineSample one = sample(0, 2 * kMs, 1, 4);
  one.waiting_prefill_tokens = EngineSample::kUnknown;
  s.observe(one, 2 * kMs);
  CHECK(s.report(0, 2 * kMs).terms.backlog_us == (400 + 3 * 400) * kMs);
}

TEST_CASE("scheduler: cached prefixes and sessions draw a request, but not into an overload") {
  Scheduler s = scheduler_of(3);
  observe_all(&s, 0);
  const std::vector<uint64_t> chat = {11, 12, 13, 14};
  DispatchRequest r = prompt(400);
  r.prefix = chat.data();
  r.prefix_count = 3;
  const Decision first = s.dispatch(r, 0);
  s.finished(first.ticket, 400 * kMs);
  r.prefix_count = 4;
  const Decision second = s.dispatch(r, 500 * kMs);
  CHECK(second.engine == first.engine);
  CHECK(s.report(first.engine, 500 * kMs).in_flight_us == 100 * kMs);  // three of four blocks are cached
  // The same after a restart, which has emptied the cache.
  Scheduler emptied = s;
  emptied.restarted(first.engine, 500 * kMs);
  const Decision third = emptied.dispatch(r, 500 * kMs);
  CHECK(emptied.report(third.engine, 500 * kMs).in_flight_us == 400 * kMs);
  // Now that engine has more in front of it than the cache saves.
  s.observe(sample(first.engine, 600 * kMs, 0, 9, 5000), 600 * kMs);
  CHECK(s.dispatch(r, 600 * kMs).engine != first.engine);

  Scheduler sticky = scheduler_of(3);
  observe_all(&sticky, 0);
  DispatchRequest turn = prompt(300);
  turn.session = 77;
  const Decision one = sticky.dispatch(turn, 0);
  sticky.finished(one.ticket, 300 * kMs);
  turn.prompt_tokens = 350;
  CHECK(sticky.dispatch(turn, 400 * kMs).engine == one.engine);
  CHECK(sticky.report(one.engine, 400 * kMs).in_flight_us == 50 * kMs);
  sticky.restarted(one.engine, 500 * kMs);
  DispatchRequest other = prompt(350);
  other.session = 77;
  const Decision anew = sticky.dispatch(other, 600 * kMs);
  CHECK(sticky.report(anew.engine, 600 * kMs).in_flight_us >= 350 * kMs);
}

TEST_CASE("scheduler: what each engine has cached draws a request there, is charged where it goes, and goes before the rest") {
  Scheduler s = scheduler_of(3);
  observe_all(&s, 0);
  const uint32_t cached[] = {0, 300, 400};
  DispatchRequest r = prompt(400);
  r.cached_by_engine = cached;
  r.cached_tokens = 100;
  const Decision first = s.dispatch(r, 0);
  CHECK(first.engine == 2);
  CHECK(first.score == 1 * kMs);  // of a prompt that is cached whole, one token is computed
  CHECK(s.report(2, 0).in_flight_us == 1 * kMs);
  s.observe(sample(2, 0, 0, 1, 200), 0);
  const Decision second = s.dispatch(r, 0);
  CHECK(second.engine == 1);
  CHECK(second.score == 100 * kMs);
  CHECK(s.dispatch_to(0, r, 0).score == 400 * kMs);
  s.scores(r, 0, true, [&](int32_t i, int64_t score) {
    CHECK(score == s.report(i, 0).terms.total_us + std::max<int64_t>(1, 400 - cached[i]) * kMs);
  });
  r.stage = Stage::kDecode;
  const int64_t empty_us = s.report(1, 0).terms.total_us;
  CHECK(s.dispatch_to(1, r, 0).score == empty_us);  // there is nothing to prefill
}

TEST_CASE("scheduler: expert pressure makes a request's own prefill dearer, and is harmless where it is not known") {
  Scheduler s(options());
  for (int32_t i = 0; i < 2; ++i) s.add_engine(engine(i));
  EngineSample hot = sample(0, 0);
  hot.moe = static_cast<int32_t>(kOne / 2);
  s.observe(hot, 0);
  s.observe(sample(1, 0, 0, 0, 90), 0);
  CHECK(s.dispatch(prompt(100), 0).engine == 0);  // 100 + 50 against 190
  CHECK(s.dispatch(prompt(400), 0).engine == 1);  // 100 + 400 + 200 against 490
}

TEST_CASE("scheduler: what the placement side tells stands before what samples tell, until it is stale") {
  SchedulerOptions o = options();
  o.stale_after_us = 100 * kSecond;
  o.experts_stale_after_us = 10 * kSecond;
  Scheduler s = scheduler_of(2, o);
  const int32_t half = static_cast<int32_t>(kOne / 2);
  const auto sample_with = [](int32_t i, int64_t time_us, int32_t moe) {
    EngineSample one = sample(i, time_us);
    one.moe = moe;
    return one;
  };
  // What a request of 400 tokens, 400 ms, meets beyond its own prefill.
  const auto excess = [&](int32_t i, int64_t now_us) {
    int64_t ms = -1;
    s.scores(prompt(400), now_us, true, [&](int32_t e, int64_t us) { ms = e == i ? us / kMs - 400 : ms; });
    return ms;
  };
  s.observe(sample_with(0, 0, half), 0);
  s.observe(sample(1, 0), 0);
  CHECK(excess(0, 0) == 200);
  s.set_expert_pressure({0, half / 2, half / 4}, kSecond, kSecond);
  s.set_expert_pressure({1, -half, 0}, 2 * kSecond, 2 * kSecond);
  CHECK(excess(0, 2 * kSecond) == 150);
  CHECK(excess(1, 2 * kSecond) == -200);
  // A sample changes nothing of it, nor does what was found out earlier.
  s.observe(sample_with(0, 3 * kSecond, 3 * half), 3 * kSecond);
  s.set_expert_pressure({0, 0, 0}, kSecond - 1, 3 * kSecond);
  CHECK(excess(0, 3 * kSecond) == 150);
  // Each goes stale by its own time; then the last sample counts.
  CHECK(excess(0, 11 * kSecond - 1) == 150);
  CHECK(excess(0, 11 * kSecond) == 600);
  CHECK(excess(1, 11 * kSecond) == -200);
  CHECK(excess(1, 12 * kSecond) == 0);
  // A decision and a report look at the time as well.
  s.set_expert_pressure({0, half, 0}, 20 * kSecond, 20 * kSecond);
  s.set_expert_pressure({1, half, 0}, 20 * kSecond, 20 * kSecond);
  s.observe(sample(0, 20 * kSecond), 20 * kSecond);
  CHECK(s.dispatch(prompt(400), 20 * kSecond).score == 600 * kMs);
  CHECK(s.report(0, 20 * kSecond).terms.moe_us == s.report(1, 20 * kSecond).terms.moe_us);
  CHECK(s.report(0, 20 * kSecond).terms.moe_us > 0);
  CHECK(s.report(0, 30 * kSecond).terms.moe_us == 0);
}

TEST_CASE("scheduler: a request goes where its experts cost least, unless that engine is further behind than by the request") {
  Scheduler s(options());
  for (int32_t i = 0; i < 2; ++i) s.add_engine(engine(i));
  const auto pick = [&](Scheduler& from, std::vector<int32_t> expert_ms, int64_t tokens) {
    for (int32_t& ms : expert_ms) ms *= static_cast<int32_t>(kMs);
    DispatchRequest r = prompt(tokens);
    r.expert_us = expert_ms.data();
    const Decision d = from.dispatch(r, 0);
    from.failed(d.ticket, 0);
    return d;
  };
  s.observe(sample(0, 0, 0, 0, 40), 0);
  s.observe(sample(1, 0), 0);
  CHECK(pick(s, {500, 530}, 100).engine == 1);  // 140 against 130
  CHECK(pick(s, {500, 550}, 100).engine == 0);  // 140 against 150
  CHECK(pick(s, {500, 550}, 100).score / kMs == 140);
  s.observe(sample(0, 0, 0, 0, 101), 0);
  CHECK(pick(s, {0, 9000}, 100).engine == 1);  // 201 against 200, since nothing counts for more than the prompt
  CHECK(pick(s, {0, 9000}, 102).engine == 0);  // 203 against 204
  CHECK(pick(s, {9000, 9000}, 102).engine == 1);

  // In lockstep the longest backlog comes first, what the experts cost with it: 140, against 100 + 30 and 100 + 50.
  Scheduler lockstep = scheduler_of(2);
  lockstep.observe(sample(0, 0, 0, 0, 40), 0);
  lockstep.observe(sample(1, 0), 0);
  CHECK(pick(lockstep, {500, 530}, 100).engine == 1);
  CHECK(pick(lockstep, {500, 550}, 100).engine == 0);

  // Where an engine may not take it, what it would cost there does not count.
  Scheduler three(options());
  for (int32_t i = 0; i < 3; ++i) three.add_engine(engine(i));
  for (int32_t i = 0; i < 3; ++i) three.observe(sample(i, 0, 0, 0, i == 1 ? 40 : 0), 0);
  three.set_state(0, EngineState::kDraining);
  CHECK(pick(three, {0, 500, 550}, 100).engine == 1);
  // Decode brings no prefill, and nothing that could be weighed against it.
  DispatchRequest decode = prompt(100);
  decode.stage = Stage::kDecode;
  const std::vector<int32_t> far = {0, 0, 1000000};
  decode.expert_us = far.data();
  CHECK(three.dispatch(decode, 0).engine == 2);
}

// ---- rivals

TEST_CASE("scheduler: the rivals pick by their formulas") {
  const auto pick = [](DispatchPolicy policy, const std::vector<EngineSample>& samples, int64_t tokens) {
    Scheduler s = scheduler_of(static_cast<int32_t>(samples.size()), options(policy));
    for (const EngineSample& one : samples) s.observe(one, 0);
    return s.dispatch(prompt(tokens), 0).engine;
  };
  // waiting * 4 + running: 9, 8, 10.
  CHECK(pick(DispatchPolicy::kVllm, {sample(0, 0, 1, 2), sample(1, 0, 8, 0), sample(2, 0, 2, 2)}, 100) == 1);
  // Tokens in the cache and waiting: 50,000, 40,600, 40,500.
  CHECK(pick(DispatchPolicy::kTotalTokens,
             {sample(0, 0, 0, 0, 0, 0.5), sample(1, 0, 0, 0, 600, 0.4), sample(2, 0, 9, 9, 500, 0.4)}, 100) == 2);
  // 2000 ms; 1000 ms + 150 ms * 4; 1500 ms + 150 ms * 3 / 7.
  CHECK(pick(DispatchPolicy::kLeastLoad,
             {sample(0, 0, 0, 9, 2000), sample(1, 0, 0, 9, 1000, 0.8), sample(2, 0, 0, 9, 1500, 0.3)}, 100) == 2);
  // Queue 1, 0, .5 of 2; KV .1, .9, .9 of 2.
  CHECK(pick(DispatchPolicy::kLlmD, {sample(0, 0, 0, 0, 0, 0.9), sample(1, 0, 0, 10, 0, 0.1), sample(2, 0, 0, 5, 0, 0.1)},
             100) == 2);

  Scheduler turns = scheduler_of(3, options(DispatchPolicy::kRoundRobin));
  std::vector<int32_t> picks;
  for (int n = 0; n < 6; ++n) picks.push_back(turns.dispatch(prompt(1), 0).engine);
  for (size_t n = 0; n < 6; ++n) CHECK(picks[n] == (picks[0] + static_cast<int32_t>(n)) % 3);

  // Dynamo: prefill blocks of its own, then decode blocks; samples mean nothing to it.
  Scheduler dynamo = scheduler_of(2, options(DispatchPolicy::kDynamo));
  const Decision big = dynamo.dispatch(prompt(1600), 0);
  const Decision small = dynamo.dispatch(prompt(160), 0);
  CHECK(small.engine != big.engine);
  CHECK(dynamo.dispatch(prompt(160), 0).engine == small.engine);
  dynamo.first_token(big.ticket, 0);
  CHECK(dynamo.dispatch(prompt(16), 0).engine == small.engine);  // it decodes 100 blocks
  dynamo.finished(big.ticket, 0);
  CHECK(dynamo.dispatch(prompt(16), 0).engine == big.engine);
}

TEST_CASE("scheduler: vLLM's and SGLang's bumps last until the next sample, as theirs do") {
  Scheduler s = scheduler_of(2, options(DispatchPolicy::kVllm));
  observe_all(&s, 0);
  const int32_t first = s.dispatch(prompt(100), 0).engine;
  CHECK(s.dispatch(prompt(100), 0).engine == 1 - first);
  for (int n = 0; n < 3; ++n) {
    s.observe(sample(first, 0), 0);
    CHECK(s.dispatch(prompt(100), 0).engine == first);
  }
  Scheduler tokens = scheduler_of(2, options(DispatchPolicy::kTotalTokens));
  observe_all(&tokens, 0);
  const int32_t one = tokens.dispatch(prompt(1000), 0).engine;
  for (int n = 0; n < 3; ++n) CHECK(tokens.dispatch(prompt(300), 0).engine == 1 - one);
  tokens.observe(sample(one, kMs), kMs);
  CHECK(tokens.dispatch(prompt(300), kMs).engine == one);
}

TEST_CASE("scheduler: of two at random, the one with fewer requests") {
  Scheduler s = scheduler_of(4, options(DispatchPolicy::kPowerOfTwo));
  for (int32_t i = 0; i < 4; ++i) s.observe(sample(i, 0, i == 3 ? 1000 : 0), 0);
  std::vector<int64_t> count(4, 0);
  for (int n = 0; n < 400; ++n) ++count[static_cast<size_t>(s.dispatch(prompt(1), 0).engine)];
  CHECK(count[3] == 0);
  for (size_t i = 0; i < 3; ++i) CHECK(count[i] > 100);
  Scheduler one = scheduler_of(1, options(DispatchPolicy::kPowerOfTwo));
  CHECK(one.dispatch(prompt(1), 0).engine == 0);
}

TEST_CASE("scheduler: sums stay in range at the limits of everything") {
  SchedulerOptions o = options();
  o.weights = {1u << 24, 1u << 24, 1u << 24, 1u << 24, 1u << 24, 1u << 24, 3600 * kSecond, static_cast<int32_t>(kOne) - 1, 3600 * kSecond, 3600 * kSecond};
  o.gateways = 2;
  for (const bool tells : {false, true}) {
    Scheduler s(o);
    EngineOptions slow = engine();
    slow.prefill_tokens_per_second = spec::kLeastTokensPerSecond;
    slow.kv_tokens = std::numeric_limits<int32_t>::max();
    for (int32_t i = 0; i < 2; ++i) s.add_engine(slow);
    const int64_t far_us = int64_t{1} << 52;
    for (int n = 0; n < 40; ++n) {
      DispatchRequest largest = prompt(spec::kMostTokens);
      const std::vector<int32_t> expert_us = {spec::kMostExpertMicros * (n % 2), spec::kMostExpertMicros};
      largest.expert_us = expert_us.data();
      CHECK(s.dispatch(largest, far_us).score < std::numeric_limits<int64_t>::max() / 4);
      s.set_expert_pressure({n % 2, static_cast<int32_t>(100 * kOne), static_cast<int32_t>(100 * kOne)}, far_us, far_us);
      EngineSample one = sample(n % 2, far_us, spec::kMostRequests, spec::kMostRequests, spec::kMostTokens, 1);
      if (!tells) one.waiting_prefill_tokens = EngineSample::kUnknown;
      one.moe = static_cast<int32_t>(100 * kOne);
      s.observe(one, far_us);
      for (int32_t i = 0; i < 2; ++i) {
        const EngineReport report = s.report(i, far_us);
        CHECK(report.terms.total_us >= 0);
        CHECK(report.terms.total_us < std::numeric_limits<int64_t>::max() / 4);
      }
    }
  }
}

// ---- against a plain scheduler

constexpr int64_t kNever = std::numeric_limits<int64_t>::min() / 2;

// Kept when it has ended, too: late samples may still count it.
struct PlainRequest {
  int32_t ticket;
  int64_t us;
  int64_t sent_us;
  int64_t due_us;            // by what was known when it was sent
  int64_t done_us = kNever;  // its prefill
  bool ended = false;
};

struct PlainEngine {
  int32_t group = 0;
  int64_t ready_us = kNever;
  int64_t foreign_us = 0;
  EngineSample sample;
  int64_t sampled_us = kNever;
  bool is_told = false;
  int32_t told_moe = 0, told_comm = 0;
  std::vector<PlainRequest> requests;

  template <class Wanted>
  int64_t sum_us(Wanted wanted) const {
    int64_t sum = 0;
    for (const PlainRequest& r : requests) sum += wanted(r) ? r.us : 0;
    return sum;
  }
  int64_t own_us() const {
    return sum_us([](const PlainRequest& r) { return r.done_us == kNever; });
  }
  // Whichever is most: the time that is left by the plan; what cannot have begun, with an eighth of what can; and, where there
  // are other gateways, their share of the time by which the first outstanding request is late.
  int64_t backlog_us(int64_t now_us, int32_t gateways = 1) const {
    int64_t most_us = ready_us - now_us, before_us = kNever;
    for (const PlainRequest& r : requests) {
      if (r.done_us != kNever) {
        before_us = std::max(before_us, r.done_us);
        continue;
      }
      const int64_t late_us = now_us - std::max(r.due_us, before_us + r.us);
      most_us = std::max({most_us, own_us() - r.us + r.us / 8, std::max<int64_t>(0, late_us) * (65536 * (gateways - 1) / gateways) / 65536});
      break;
    }
    return std::max<int64_t>(most_us, 0);
  }
  int32_t unseen() const {
    return static_cast<int32_t>(std::count_if(requests.begin(), requests.end(), [&](const PlainRequest& r) {
      return r.done_us == kNever && r.sent_us >= sampled_us;
    }));
  }
  // Of kWholeShare; a token takes 1 ms.
  int32_t demand() const {
    const int64_t sent = sum_us([&](const PlainRequest& r) { return r.sent_us >= sampled_us; }) / kMs;
    const int64_t waiting = sampled_us == kNever ? 0 : sample.waiting_prefill_tokens;
    return sample.kv + static_cast<int32_t>((waiting + sent) * 65536 / engine().kv_tokens);
  }
  int64_t rest_us(const spec::PressureWeights& w, int64_t own_us) const {
    const double share = std::min(demand(), w.kv_most);
    const int64_t kv_us = static_cast<int64_t>(std::floor(static_cast<double>(w.kv_us) * share / (65536.0 - share)));
    const double moe_us = static_cast<double>(own_us) * (is_told ? told_moe + told_comm : sample.moe) / 65536;
    return kv_us + (sample.waiting + unseen()) * w.waiting_us + sample.running * w.running_us +
           static_cast<int64_t>(std::floor(moe_us));
  }
  bool has_room(const spec::PressureWeights& w, int64_t tokens) const {
    return demand() < w.kv_most && tokens <= (w.kv_most - demand()) * engine().kv_tokens / 65536;
  }
};

TEST_CASE("scheduler: every decision and every ledger is that of a scheduler that adds up lists") {
  INFO("seed " << test::base_seed());
  int64_t decisions = 0, foreign = 0, affine = 0, kinds[3] = {0, 0, 0};
  for (uint64_t round = 0; round < 30; ++round) {
    test::Random random(100 + round);
    SchedulerOptions o = options();
    o.gateways = 1 + static_cast<int32_t>(round % 3);
    Scheduler s(o);
    const int32_t count = random.between(1, 7), groups = random.between(1, count);
    std::vector<PlainEngine> plain(static_cast<size_t>(count));
    for (int32_t i = 0; i < count; ++i) {
      plain[static_cast<size_t>(i)].group = i % groups;
      s.add_engine(engine(i % groups));
    }
    int64_t now_us = kSecond;
    std::vector<int32_t> open;
    std::map<int32_t, int32_t> engine_of;
    const auto find = [&](int32_t ticket) -> PlainRequest& {
      std::vector<PlainRequest>& all = plain[static_cast<size_t>(engine_of.at(ticket))].requests;
      return *std::find_if(all.begin(), all.end(), [&](const PlainRequest& r) { return r.ticket == ticket && !r.ended; });
    };
    for (int step = 0; step < 600; ++step) {
      now_us += random.below(40 * static_cast<int32_t>(kMs));
      const int32_t what = step < count ? 0 : random.below(10);
      if (what < 2) {
        const int32_t i = step < count ? step : random.below(count);
        PlainEngine& e = plain[static_cast<size_t>(i)];
        EngineSample one = sample(i, now_us - random.below(50 * static_cast<int32_t>(kMs)), random.below(20), random.below(5),
                                  random.below(2000), random.uniform());
        one.moe = random.below(65536);
        s.observe(one, now_us);
        if (random.below(4) == 0) {
          e.is_told = true;
          e.told_moe = random.between(-30000, 30000);
          e.told_comm = random.between(-30000, 30000);
          s.set_expert_pressure({i, e.told_moe, e.told_comm}, now_us, now_us);
        }
        if (one.time_us < e.sampled_us) continue;
        const int64_t begun_us = std::max<int64_t>(0, e.foreign_us - (one.time_us - e.sampled_us));
        e.sample = one;
        e.sampled_us = one.time_us;
        const int64_t unseen_us =
            e.sum_us([&](const PlainRequest& r) { return r.done_us == kNever && r.sent_us >= e.sampled_us; });
        const int64_t shown_us = e.sum_us([&](const PlainRequest& r) {
          return r.sent_us < e.sampled_us && (r.done_us == kNever || r.done_us > e.sampled_us);
        });
        const int64_t waiting_us = one.waiting_prefill_tokens * kMs;
        e.foreign_us = std::max(begun_us, waiting_us - shown_us);
        foreign += e.foreign_us > 0 ? 1 : 0;
        const int64_t least_us = e.sampled_us + waiting_us + unseen_us;
        e.ready_us = std::max(least_us, std::min(e.ready_us, now_us + e.own_us() + e.foreign_us));
      } else if (what < 6) {
        const int64_t tokens = random.between(1, 3000);
        DispatchRequest request = prompt(tokens);
        std::vector<uint32_t> cached(static_cast<size_t>(count), 0);
        if (random.below(2) == 0) {
          for (uint32_t& one : cached) one = static_cast<uint32_t>(random.below(static_cast<int32_t>(tokens) + 1));
          request.cached_by_engine = cached.data();
        }
        std::vector<int32_t> expert_us(static_cast<size_t>(count), 0);
        if (random.below(3) == 0) {
          for (int32_t& one : expert_us) one = random.below(4000) * static_cast<int32_t>(kMs);
          request.expert_us = expert_us.data();
        }
        const Decision d = s.dispatch(request, now_us);
        REQUIRE(d.engine >= 0);
        ++decisions;
        const auto own_us = [&](const PlainEngine& e) {
          return std::max<int64_t>(1, tokens - cached[static_cast<size_t>(&e - plain.data())]) * kMs;
        };
        // Which engines are looked at: those with fresh samples and cache to spare, or else the next best kind.
        const auto kind = [&](const PlainEngine& e) {
          return e.sampled_us < now_us - o.stale_after_us ? 2 : e.has_room(o.weights, tokens) ? 0 : 1;
        };
        int best_kind = 2;
        for (const PlainEngine& e : plain) best_kind = std::min(best_kind, kind(e));
        const int32_t least_us = *std::min_element(expert_us.begin(), expert_us.end());
        const auto affinity = [&](const PlainEngine& e) {
          return std::min<int64_t>(own_us(e), expert_us[static_cast<size_t>(&e - plain.data())] - least_us);
        };
        affine += affinity(plain[static_cast<size_t>(d.engine)]) == 0 && least_us > 0 ? 1 : 0;
        const auto longest_with = [&](const PlainEngine& e) {
          int64_t longest = e.backlog_us(now_us, o.gateways) + own_us(e);
          for (const PlainEngine& other : plain) {
            if (&other != &e && other.group == e.group) longest = std::max(longest, other.backlog_us(now_us, o.gateways));
          }
          return longest + affinity(e);
        };
        const auto total = [&](const PlainEngine& e) {
          return e.backlog_us(now_us, o.gateways) + own_us(e) + e.rest_us(o.weights, own_us(e)) + affinity(e);
        };
        // The pick is one that nothing beats: in its group by (longest, total), among groups by longest + rest.
        const PlainEngine& picked = plain[static_cast<size_t>(d.engine)];
        REQUIRE(kind(picked) == best_kind);
        ++kinds[best_kind];
        const bool perturbed = o.gateways > 1 && best_kind == 0;
        for (const PlainEngine& e : plain) {
          if (kind(e) != best_kind || perturbed) continue;
          if (best_kind == 2) {
            REQUIRE(picked.backlog_us(now_us, o.gateways) + own_us(picked) <= e.backlog_us(now_us, o.gateways) + own_us(e));
          } else if (best_kind == 1) {
            REQUIRE(std::make_pair(picked.demand(), total(picked)) <= std::make_pair(e.demand(), total(e)));
          } else if (e.group == picked.group) {
            const bool beats = longest_with(e) < longest_with(picked) ||
                               (longest_with(e) == longest_with(picked) && total(e) < total(picked));
            REQUIRE_FALSE(beats);
          }
        }
        const auto cost = [&](const PlainEngine& e) { return longest_with(e) + e.rest_us(o.weights, own_us(e)); };
        for (int32_t g = 0; best_kind == 0 && !perturbed && g < groups; ++g) {
          const PlainEngine* champion = nullptr;
          for (const PlainEngine& e : plain) {
            if (e.group != g || kind(e) != best_kind) continue;
            if (champion == nullptr || longest_with(e) < longest_with(*champion) ||
                (longest_with(e) == longest_with(*champion) && total(e) < total(*champion))) {
              champion = &e;
            }
          }
          if (champion != nullptr) REQUIRE(cost(picked) <= cost(*champion));
        }
        PlainEngine& e = plain[static_cast<size_t>(d.engine)];
        e.ready_us = std::max(e.ready_us, now_us) + own_us(e);
        e.requests.push_back({d.ticket, own_us(e), now_us, e.ready_us});
        engine_of[d.ticket] = d.engine;
        open.push_back(d.ticket);
      } else if (!open.empty()) {
        const size_t at = static_cast<size_t>(random.below(static_cast<int32_t>(open.size())));
        const int32_t ticket = open[at];
        PlainEngine& e = plain[static_cast<size_t>(engine_of.at(ticket))];
        PlainRequest& r = find(ticket);
        const bool was_outstanding = r.done_us == kNever;
        if (was_outstanding) {
          if (what != 8 && r.sent_us >= e.sampled_us) e.foreign_us = 0;
          r.done_us = now_us;
        }
        if (what < 8) {
          s.first_token(ticket, now_us);
          if (was_outstanding) e.ready_us = now_us + e.own_us() + e.foreign_us;
        } else if (what == 8) {
          s.failed(ticket, now_us);
          if (was_outstanding) e.ready_us = std::max(now_us, e.ready_us - r.us);
        } else {
          s.finished(ticket, now_us);
          if (was_outstanding) e.ready_us = std::min(e.ready_us, now_us + e.own_us() + e.foreign_us);
        }
        if (what >= 8) {
          r.ended = true;
          engine_of.erase(ticket);
          open.erase(open.begin() + static_cast<std::ptrdiff_t>(at));
        }
      }
      for (int32_t i = 0; i < count; ++i) {
        const PlainEngine& e = plain[static_cast<size_t>(i)];
        const EngineReport report = s.report(i, now_us);
        REQUIRE(report.in_flight_us == e.own_us());
        REQUIRE(report.in_flight ==
                std::count_if(e.requests.begin(), e.requests.end(), [](const PlainRequest& one) { return !one.ended; }));
        REQUIRE(report.terms.backlog_us == e.backlog_us(now_us, o.gateways));
      }
    }
    for (int32_t ticket : open) s.finished(ticket, now_us);
    for (int32_t i = 0; i < count; ++i) {
      CHECK(s.report(i, now_us).in_flight_us == 0);
      CHECK(s.report(i, now_us).in_flight == 0);
    }
  }
  CHECK(decisions > 1000);
  CHECK(foreign > 100);
  CHECK(affine > 100);
  CHECK(kinds[0] > 500);
  CHECK(kinds[1] > 50);
}

}  // namespace
}  // namespace gimbal
