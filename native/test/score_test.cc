// Scores: every backend and every set of kernels against the formulas written out anew, over columns that no ledger would give,
// ties and limits among them; against the scheduler that the columns were taken from; and who is asked where.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <tuple>
#include <vector>

#include "../dispatch/scheduler.h"
#include "../model/errors.h"
#include "../solver/cpu/kernels.h"
#include "../solver/score.h"
#include "backends.h"
#include "layer_rig.h"
#include "random.h"

using namespace gimbal;
using namespace gimbal::test;

namespace {

constexpr uint32_t kOne = 1u << spec::kShareBits;

struct Answer {
  std::vector<int64_t> pressure_us;  // [requests][engines]
  std::vector<int32_t> best;         // [requests]
  bool operator==(const Answer& other) const { return pressure_us == other.pressure_us && best == other.best; }
};

// ---- the definition, in numbers that cannot overflow

int64_t weighted(__int128 us, uint32_t weight) {
  return static_cast<int64_t>(std::min<__int128>(us, spec::kMostMicros) * weight >> spec::kShareBits);
}

int64_t expected_us(const ScoreInputs& in, size_t engine, int64_t tokens, int64_t affinity_us) {
  const __int128 own_us = static_cast<__int128>(tokens) * in.per_token[engine] >> 20;
  const __int128 moe_us = std::min<__int128>(own_us, int64_t{1} << 28) * in.excess[engine] >> spec::kShareBits;
  return weighted(in.backlog_us[engine] + own_us, in.weights.backlog) + in.rest_us[engine] + static_cast<int64_t>(moe_us) +
         static_cast<int64_t>(std::min<__int128>(own_us, affinity_us));
}

Answer expected_of(const ScoreInputs& in) {
  const size_t engines = in.flags.size();
  Answer answer;
  for (size_t r = 0; r < in.row.size(); ++r) {
    std::vector<std::tuple<int32_t, int64_t, int32_t>> able;  // class, us, engine
    for (size_t e = 0; e < engines; ++e) {
      const size_t at = static_cast<size_t>(std::max(in.row[r], 0)) * engines + e;
      const size_t affinity_at = static_cast<size_t>(std::max(in.affinity_row[r], 0)) * engines + e;
      const int64_t us = expected_us(in, e, in.row[r] < 0 ? in.uncached_tokens[r] : in.uncached[at],
                                     in.affinity_row[r] < 0 ? 0 : in.affinity_us[affinity_at]);
      const bool may = (in.flags[e] & in.takes[r]) != 0;
      answer.pressure_us.push_back(may ? us : INT64_MAX);
      const int32_t rank = (in.flags[e] & spec::kIsStale) != 0 ? 2 : in.room_tokens[e] < in.prompt_tokens[r] ? 1 : 0;
      if (may) able.emplace_back(rank, us, static_cast<int32_t>(e));
    }
    answer.best.push_back(able.empty() ? -1 : std::get<2>(*std::min_element(able.begin(), able.end())));
  }
  return answer;
}

// ---- columns

// Any number up to its limit, often the limit itself; or one of three, so that engines tie.
class Draw {
 public:
  explicit Draw(Random* random) : random_(*random), few_(random->chance(0.4)) {}
  int64_t operator()(int32_t bits) const {
    const int64_t limit = int64_t{1} << bits;
    if (few_) return std::min<int64_t>(limit, random_.below(3));
    return random_.chance(0.1) ? limit : random_.chance(0.1) ? 0 : static_cast<int64_t>(random_.any_magnitude(bits));
  }

 private:
  Random& random_;
  bool few_;
};

uint32_t draw_weight(Random& random) {
  return random.chance(0.4) ? kOne : static_cast<uint32_t>(random.chance(0.1) ? 1u << 24 : random.any_magnitude(24));
}

ScoreInputs draw_inputs(Random& random, int32_t engines, int32_t requests) {
  const Draw draw(&random);
  const uint8_t kinds = static_cast<uint8_t>(random.chance(0.3) ? random.below(8) : 7);  // flags that come up at all
  ScoreInputs in;
  in.weights.backlog = draw_weight(random);
  for (int32_t e = 0; e < engines; ++e) {
    in.backlog_us.push_back(draw(44));
    in.rest_us.push_back(draw(53));
    in.per_token.push_back(spec::micros_per_token(100 + std::min<int64_t>(draw(30), 999999900)));
    in.excess.push_back(random.chance(0.3) ? -random.below(spec::kWholeShare + 1)
                                           : static_cast<int32_t>(std::min<int64_t>(draw(31), INT32_MAX)));
    in.room_tokens.push_back(static_cast<int32_t>(draw(28)) - 1);
    in.flags.push_back(static_cast<uint8_t>(random.below(8) & kinds));
  }
  for (int32_t r = 0; r < requests; ++r) {
    in.prompt_tokens.push_back(static_cast<int32_t>(draw(28)));
    in.uncached_tokens.push_back(static_cast<int32_t>(draw(28)));
    in.takes.push_back(random.chance(0.3) ? spec::kTakesDecode : spec::kTakesPrefill);
    in.row.push_back(random.chance(0.3) ? in.rows++ : -1);
    for (int32_t e = 0; in.row.back() >= 0 && e < engines; ++e) in.uncached.push_back(static_cast<int32_t>(draw(28)));
    in.affinity_row.push_back(random.chance(0.3) ? in.affinity_rows++ : -1);
    for (int32_t e = 0; in.affinity_row.back() >= 0 && e < engines; ++e) in.affinity_us.push_back(static_cast<int32_t>(draw(30)));
  }
  return in;
}

Answer blank(const ScoreInputs& in) {
  return {std::vector<int64_t>(in.row.size() * in.flags.size(), -77), std::vector<int32_t>(in.row.size(), -77)};
}

Answer score_by(Scorer& scorer, const ScoreInputs& in) {
  Answer answer = blank(in);
  scorer.score(in.engines(), in.requests(), answer.pressure_us.data(), answer.best.data());
  return answer;
}

// How often something came up that a test is about.
struct Seen {
  int32_t none = 0, ties = 0, stale = 0, short_of_kv = 0, rows = 0;
  void note(const ScoreInputs& in, const Answer& answer) {
    const size_t engines = in.flags.size();
    for (size_t r = 0; r < in.row.size(); ++r) {
      rows += in.row[r] >= 0;
      if (answer.best[r] < 0) {
        ++none;
        continue;
      }
      const size_t best = static_cast<size_t>(answer.best[r]);
      const int64_t* const row = answer.pressure_us.data() + r * engines;
      ties += std::count(row, row + engines, row[best]) > 1;
      const bool is_stale = (in.flags[best] & spec::kIsStale) != 0;
      stale += is_stale;
      short_of_kv += !is_stale && in.room_tokens[best] < in.prompt_tokens[r];
    }
  }
};

}  // namespace

TEST_CASE("batch: scores and the best engine are what the formulas give") {
  for (Backend* backend : backends()) {
    const std::unique_ptr<Scorer> scorer = backend->make_scorer();
    Seen seen;
    for (uint64_t stream = 0; stream < share_of(200); ++stream) {
      Random random(stream + 40000);
      const ScoreInputs in = draw_inputs(random, random.between(1, random.chance(0.2) ? 200 : 40), random.between(1, 12));
      INFO("backend " << backend->name() << ", seed " << base_seed() << ", stream " << stream << ": " << in.row.size()
                      << " requests on " << in.flags.size() << " engines");
      const Answer expected = expected_of(in);
      REQUIRE(score_by(*scorer, in) == expected);
      seen.note(in, expected);
    }
    for (int32_t count : {seen.none, seen.ties, seen.stale, seen.short_of_kv, seen.rows}) CHECK(happened(count, 20));
  }
}

TEST_CASE("batch: scores of a fleet and of a single engine") {
  for (Backend* backend : backends()) {
    const std::unique_ptr<Scorer> scorer = backend->make_scorer();
    const auto check = [&](int32_t engines, int32_t requests, uint64_t stream) {
      Random random(stream);
      const ScoreInputs in = draw_inputs(random, engines, requests);
      INFO("backend " << backend->name() << ", seed " << base_seed() << ": " << requests << " requests on " << engines << " engines");
      REQUIRE(score_by(*scorer, in) == expected_of(in));
    };
    check(4096, 20, 41000);
    check(1, 1, 41001);
    check(1, 3000, 41002);
    check(4097, 1, 41003);
    check(65, 33, 41004);
  }
}

TEST_CASE("batch: scores of a part of a part are those of the whole") {
  for (Backend* backend : backends()) {
    const std::unique_ptr<Scorer> scorer = backend->make_scorer();
    for (uint64_t stream = 0; stream < share_of(40); ++stream) {
      Random random(stream + 46000);
      const int32_t engines = random.between(1, 40), requests = random.between(1, 30);
      const ScoreInputs in = draw_inputs(random, engines, requests);
      INFO("backend " << backend->name() << ", seed " << base_seed() << ", stream " << stream);
      const int32_t first = random.below(requests), count = random.between(1, requests - first);
      const int32_t inner = random.below(count), inner_count = random.between(1, count - inner);
      const spec::RequestColumns part =
          spec::part_of(spec::part_of(in.requests(), engines, first, count), engines, inner, inner_count);
      std::vector<int64_t> us(static_cast<size_t>(inner_count) * static_cast<size_t>(engines));
      std::vector<int32_t> best(static_cast<size_t>(inner_count));
      scorer->score(in.engines(), part, us.data(), best.data());
      const Answer whole = expected_of(in);
      const auto from = whole.pressure_us.begin() + int64_t{first + inner} * engines;
      REQUIRE(us == std::vector<int64_t>(from, from + int64_t{inner_count} * engines));
      REQUIRE(std::equal(best.begin(), best.end(), whole.best.begin() + first + inner));
    }
  }
}

TEST_CASE("scores: all sets of kernels agree with the formulas") {
  for (const KernelSet& set : kernel_sets()) {
    for (uint64_t stream = 0; stream < 200; ++stream) {
      Random random(stream + 42000);
      const ScoreInputs in = draw_inputs(random, random.between(1, random.chance(0.2) ? 700 : 40), random.between(1, 12));
      INFO("kernels " << set.name << ", seed " << base_seed() << ", stream " << stream);
      Answer answer = blank(in);
      std::vector<int32_t> scratch(in.flags.size());
      set.kernels->score(in.engines(), in.requests(), answer.pressure_us.data(), answer.best.data(), scratch.data());
      REQUIRE(answer == expected_of(in));
    }
  }
}

namespace {

// A scheduler after some hundred events, at a time when a sample may have become stale.
struct Ledger {
  std::unique_ptr<Scheduler> scheduler;
  int64_t now_us = 0;
};

DispatchRequest draw_request(Random& random, const std::vector<uint64_t>& hashes, const std::vector<int32_t>& expert_us) {
  DispatchRequest r;
  r.prompt_tokens = random.chance(0.05) ? spec::kMostTokens : static_cast<int64_t>(random.any_magnitude(16));
  r.stage = random.chance(0.2) ? Stage::kDecode : Stage::kPrefill;
  r.streams = random.chance(0.8);
  if (random.chance(0.3)) r.cached_tokens = static_cast<int64_t>(random.bits() % static_cast<uint64_t>(r.prompt_tokens + 1));
  if (random.chance(0.4)) r.session = 1 + static_cast<uint64_t>(random.below(6));
  if (random.chance(0.4)) {
    r.prefix = hashes.data() + 8 * random.below(4);
    r.prefix_count = random.between(1, 8);
  }
  if (random.chance(0.4)) r.expert_us = expert_us.data() + random.below(4);
  return r;
}

Ledger draw_ledger(Random& random, DispatchPolicy policy, const std::vector<uint64_t>& hashes,
                   const std::vector<int32_t>& expert_us) {
  SchedulerOptions options;
  options.policy = policy;
  options.weights = {draw_weight(random), kOne, draw_weight(random), draw_weight(random), draw_weight(random), draw_weight(random), 150000, static_cast<int32_t>(kOne * 9 / 10), 2000, 200};
  options.stale_after_us = 3000000;
  options.experts_stale_after_us = random.chance(0.5) ? 1000000 : 30000000;
  options.gateways = random.between(1, 3);
  options.seed = random.bits();
  Ledger ledger{std::make_unique<Scheduler>(options), 0};
  Scheduler& s = *ledger.scheduler;
  const int32_t engines = random.between(1, 12);
  for (int32_t e = 0; e < engines; ++e) {
    EngineOptions engine;
    engine.group = random.below(3);
    engine.role = static_cast<EngineRole>(random.below(3));
    engine.prefill_tokens_per_second = 100 + static_cast<int64_t>(random.any_magnitude(20));
    engine.kv_tokens = random.chance(0.5) ? 0 : 1 + static_cast<int64_t>(random.any_magnitude(20));
    s.add_engine(engine);
    if (random.chance(0.1)) s.set_state(e, static_cast<EngineState>(random.below(4)));
  }
  std::vector<int32_t> tickets;
  const double samples = random.chance(0.2) ? 0.0 : 0.3;  // where there is none, all engines are stale
  for (int32_t n = random.below(200); n > 0; --n) {
    ledger.now_us += static_cast<int64_t>(random.any_magnitude(18));
    if (random.chance(samples)) {
      EngineSample sample;
      sample.engine = random.below(engines);
      sample.time_us = ledger.now_us - random.below(100000);
      sample.kv = random.below(spec::kWholeShare + 1);
      sample.running = random.below(50);
      sample.waiting = random.below(10);
      sample.moe = random.chance(0.5) ? 0 : random.below(3 * spec::kWholeShare);
      s.observe(sample, ledger.now_us);
      if (random.chance(0.3)) {
        s.set_expert_pressure({sample.engine, random.below(kOne), random.between(-40000, 40000)}, ledger.now_us, ledger.now_us);
      }
    } else if (!tickets.empty() && random.chance(0.3)) {
      s.finished(tickets.back(), ledger.now_us);
      tickets.pop_back();
    } else {
      const Decision decision = s.dispatch(draw_request(random, hashes, expert_us), ledger.now_us);
      if (decision.ticket >= 0) tickets.push_back(decision.ticket);
    }
  }
  ledger.now_us += random.chance(0.3) ? 2000000 : 0;
  return ledger;
}

}  // namespace

TEST_CASE("batch: scores of a ledger are what the scheduler itself says of each request") {
  for (Backend* backend : backends()) {
    const std::unique_ptr<Scorer> scorer = backend->make_scorer();
    Seen seen;
    for (uint64_t stream = 0; stream < share_of(300); ++stream) {
      Random random(stream + 43000);
      INFO("backend " << backend->name() << ", seed " << base_seed() << ", stream " << stream);
      std::vector<uint64_t> hashes(32);
      for (uint64_t& hash : hashes) hash = random.bits();
      std::vector<int32_t> expert_us(16);
      for (int32_t& us : expert_us) us = static_cast<int32_t>(random.any_magnitude(20));
      const auto policy = static_cast<DispatchPolicy>(random.chance(0.7) ? 0 : random.below(8));
      const Ledger ledger = draw_ledger(random, policy, hashes, expert_us);
      Scheduler& s = *ledger.scheduler;
      std::vector<DispatchRequest> requests;
      for (int32_t n = random.between(1, 10); n > 0; --n) requests.push_back(draw_request(random, hashes, expert_us));
      const ScoreInputs in = s.score_inputs(requests, ledger.now_us);
      const Answer answer = score_by(*scorer, in);
      Answer expected{std::vector<int64_t>(answer.pressure_us.size(), spec::kNoScore), {}};
      for (size_t r = 0; r < requests.size(); ++r) {
        const size_t row = r * static_cast<size_t>(s.engines());
        s.scores(requests[r], ledger.now_us, true,
                 [&](int32_t e, int64_t us) { expected.pressure_us[row + static_cast<size_t>(e)] = us; });
        std::pair<int64_t, int32_t> least{INT64_MAX, -1};
        s.scores(requests[r], ledger.now_us, false, [&](int32_t e, int64_t us) { least = std::min(least, {us, e}); });
        expected.best.push_back(least.second);
      }
      REQUIRE(answer == expected);
      seen.note(in, expected);
    }
    for (int32_t count : {seen.none, seen.stale, seen.short_of_kv, seen.rows}) CHECK(happened(count, 20));
  }
}

namespace {

// Whether these are the answer in milliseconds.
bool is_of(const Scores& scores, const Answer& answer) {
  const auto same = [](double ms, int64_t us) {
    return us == spec::kNoScore ? std::isnan(ms) : ms == static_cast<double>(us) / 1000;
  };
  return scores.best == answer.best && std::equal(scores.pressure_ms.begin(), scores.pressure_ms.end(), answer.pressure_us.begin(),
                                                  answer.pressure_us.end(), same);
}

}  // namespace

TEST_CASE("batch: scores of more than are made at once are those of its parts, rows included") {
  for (const BackendChoice choice : {BackendChoice::kCpu, BackendChoice::kCuda}) {
    if (choice == BackendChoice::kCuda && !list_backends().back().available) continue;
    ScoreWorkspace workspace;
    for (uint64_t stream = 0; stream < 3; ++stream) {
      Random random(stream + 44000);
      const int32_t engines = random.between(3000, 4096);
      const ScoreInputs in = draw_inputs(random, engines, random.between(300, 400));
      INFO("backend " << static_cast<int>(choice) << ", seed " << base_seed() << ", stream " << stream);
      REQUIRE(is_of(score_requests(in.engines(), in.requests(), {choice, 0}, workspace), expected_of(in)));
    }
  }
}

TEST_CASE("scores: who is asked, and what is said of it") {
  Random random(45000);
  ScoreWorkspace workspace;
  const BackendInfo cuda = list_backends().back();
  const auto ask = [&](const ScoreInputs& in, BackendChoice backend) {
    return score_requests(in.engines(), in.requests(), {backend, 0}, workspace);
  };
  const ScoreInputs small = draw_inputs(random, 5, 3);
  const Answer expected = expected_of(small);
  for (BackendChoice choice : {BackendChoice::kAuto, BackendChoice::kCpu}) {
    const Scores scores = ask(small, choice);
    CHECK(is_of(scores, expected));
    CHECK(scores.backend == "cpu");
    CHECK(scores.backend_reason.empty() == (choice == BackendChoice::kCpu));
  }
  if (cuda.available) {
    CHECK(ask(small, BackendChoice::kCuda).backend == "cuda");
  } else {
    CHECK_THROWS_AS(ask(small, BackendChoice::kCuda), Error);
  }
  // Nothing to score: no engine, or no request.
  CHECK(ask(draw_inputs(random, 0, 3), BackendChoice::kCpu).best == std::vector<int32_t>(3, -1));
  CHECK(ask(draw_inputs(random, 4, 0), BackendChoice::kCpu).best.empty());
}
