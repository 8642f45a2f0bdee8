// The queue against a list that is searched anew each time, and what its order promises.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../dispatch/request_queue.h"
#include "../spec/pressure.h"
#include "random.h"

namespace gimbal {
namespace {

constexpr int64_t kSecond = 1000 * 1000;

struct Waiting {
  int32_t handle;
  int64_t tokens;
  int64_t arrival_us;
  uint64_t number;
};

// Whether `a` goes before `b`, from the definitions. Divisions by a rate that divides 2^20 us are exact.
bool goes_before(QueuePolicy policy, int64_t rate, int64_t now_us, const Waiting& a, const Waiting& b) {
  const auto rank = [&](const Waiting& w) -> int64_t {
    if (policy == QueuePolicy::kFcfs) return w.arrival_us;
    if (policy == QueuePolicy::kSpf) return w.tokens;
    return w.arrival_us + w.tokens * kSecond / rate;
  };
  if (policy == QueuePolicy::kHrrn) {
    const auto wait = [&](const Waiting& w) { return now_us - w.arrival_us; };
    const int64_t mine = wait(a) * std::max<int64_t>(b.tokens, 1), its = wait(b) * std::max<int64_t>(a.tokens, 1);
    return mine > its || (mine == its && a.number < b.number);
  }
  return rank(a) < rank(b) || (rank(a) == rank(b) && a.number < b.number);
}

TEST_CASE("queue: the one that goes next is the first by the definition, whatever was done before") {
  constexpr int64_t kRate = 1000;
  for (QueuePolicy policy : {QueuePolicy::kGimbal, QueuePolicy::kFcfs, QueuePolicy::kSpf, QueuePolicy::kHrrn}) {
    RequestQueue queue({policy, kRate});
    std::vector<Waiting> list;
    int64_t now_us = 100 * kSecond;
    uint64_t pushes = 0;
    test::Random random(static_cast<uint64_t>(policy));
    INFO("seed " << test::base_seed());
    const auto below = [&](int32_t bound) { return random.below(bound); };
    for (int step = 0; step < 20000; ++step) {
      now_us += below(5) == 0 ? below(2 * kSecond) : 0;
      const int32_t what = below(10);
      if (what < 5 || list.empty()) {
        const int64_t tokens = below(4) == 0 ? below(3) : below(5000);
        const int64_t arrival_us = now_us - below(3) * below(kSecond);
        list.push_back({queue.push(tokens, arrival_us, now_us), tokens, arrival_us, pushes++});
      } else if (what < 7) {
        const auto first = std::min_element(list.begin(), list.end(), [&](const Waiting& a, const Waiting& b) {
          return goes_before(policy, kRate, now_us, a, b);
        });
        REQUIRE(queue.peek(now_us) == first->handle);
        REQUIRE(queue.pop(now_us) == first->handle);
        list.erase(first);
      } else if (what < 9) {
        Waiting& some = list[static_cast<size_t>(below(static_cast<int32_t>(list.size())))];
        some.tokens = below(5000);
        queue.update(some.handle, some.tokens);
      } else {
        const auto some = list.begin() + below(static_cast<int32_t>(list.size()));
        queue.remove(some->handle);
        list.erase(some);
      }
      REQUIRE(queue.size() == static_cast<int64_t>(list.size()));
    }
  }
}

TEST_CASE("queue: a request is overtaken only by those that arrive less than its prefill's aging after it") {
  constexpr int64_t kRate = 500;
  RequestQueue queue({QueuePolicy::kGimbal, kRate});
  std::vector<Waiting> waiting;
  int64_t now_us = 0;
  test::Random random(7);
  INFO("seed " << test::base_seed());
  const auto below = [&](int32_t bound) { return random.below(bound); };
  int overtaken = 0;
  for (int step = 0; step < 20000; ++step) {
    now_us += below(300 * 1000);
    if (below(2) == 0) {
      const int64_t tokens = below(8000);
      waiting.push_back({queue.push(tokens, now_us, now_us), tokens, now_us, 0});
      continue;
    }
    const int32_t handle = queue.pop(now_us);
    if (handle < 0) continue;
    const auto popped = std::find_if(waiting.begin(), waiting.end(), [&](const Waiting& w) { return w.handle == handle; });
    const Waiting served = *popped;
    waiting.erase(popped);
    for (const Waiting& w : waiting) {
      if (w.arrival_us >= served.arrival_us) continue;
      ++overtaken;
      REQUIRE((served.arrival_us - w.arrival_us) * kRate <= w.tokens * kSecond);
    }
  }
  CHECK(overtaken > 1000);
}

TEST_CASE("queue: a clock that is off gains nothing") {
  RequestQueue queue({QueuePolicy::kFcfs, 1000});
  const int64_t now_us = 1000 * kSecond;
  const int32_t honest = queue.push(10, now_us - RequestQueue::kMostBackdatedUs, now_us);
  const int32_t backdated = queue.push(10, 0, now_us);
  const int32_t future = queue.push(10, now_us + 3600 * kSecond, now_us);
  const int32_t later = queue.push(10, now_us, now_us);
  CHECK(queue.pop(now_us) == honest);
  CHECK(queue.pop(now_us) == backdated);
  CHECK(queue.pop(now_us) == future);
  CHECK(queue.pop(now_us) == later);
  CHECK(queue.pop(now_us) == -1);
  CHECK(queue.peek(now_us) == -1);
}

TEST_CASE("queue: sums stay in range at the limits") {
  RequestQueue queue({QueuePolicy::kGimbal, spec::kLeastTokensPerSecond});
  const int64_t far_us = int64_t{1} << 52;
  const int32_t longest = queue.push(spec::kMostTokens, far_us, far_us);
  const int32_t shortest = queue.push(0, far_us, far_us);
  CHECK(queue.pop(far_us) == shortest);
  CHECK(queue.pop(far_us) == longest);
  RequestQueue ratio({QueuePolicy::kHrrn, 1000});
  const int32_t old = ratio.push(spec::kMostTokens, 0, 0);
  const int32_t young = ratio.push(spec::kMostTokens, far_us, far_us);
  CHECK(ratio.pop(far_us) == old);
  CHECK(ratio.pop(far_us) == young);
}

}  // namespace
}  // namespace gimbal
