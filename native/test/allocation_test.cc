// A decision and what follows it allocate nothing, once as much has been in flight before; nor does counting what was routed. Counted by operator new, which
// sanitizers have their own of.
#include <doctest/doctest.h>

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

#include <cstdlib>
#include <deque>
#include <new>
#include <vector>

#include "../dispatch/request_queue.h"
#include "../dispatch/scheduler.h"
#include "../model/statistics.h"
#include "../spec/random.h"

namespace {

thread_local long allocations = 0;

void* counted(size_t bytes) {
  ++allocations;
  if (void* const memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(size_t bytes) { return counted(bytes); }
void* operator new[](size_t bytes) { return counted(bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }

namespace gimbal {
namespace {

constexpr int32_t kEngines = 16;
constexpr size_t kInFlight = 64;

void work(Scheduler* scheduler, std::vector<int32_t>* open, int64_t* now_us, uint64_t* draws, int count) {
  uint64_t blocks[8];
  uint32_t cached[kEngines] = {0, 2000};
  int32_t expert_us[kEngines] = {900, 20000};
  for (int n = 0; n < count; ++n) {
    *now_us += 1000;
    const uint64_t bits = spec::mix64(++*draws);
    if (bits % 16 == 0) {
      EngineSample sample;
      sample.engine = static_cast<int32_t>(bits >> 8) & (kEngines - 1);
      sample.time_us = *now_us;
      sample.waiting = static_cast<int32_t>(bits >> 16) & 7;
      scheduler->observe(sample, *now_us);
      scheduler->set_expert_pressure({sample.engine, sample.waiting * 1000, -sample.waiting * 1000}, *now_us, *now_us);
    }
    DispatchRequest request;
    request.prompt_tokens = 1 + static_cast<int64_t>(bits % 4000);
    request.session = bits % 3 == 0 ? 1 + bits % 100 : 0;
    request.streams = bits % 5 != 0;
    for (uint64_t b = 0; b < 8; ++b) blocks[b] = bits % 50 * 8 + b;
    if (bits % 2 == 0) {
      request.prefix = blocks;
      request.prefix_count = 8;
    }
    if (bits % 13 == 0) request.cached_by_engine = cached;
    if (bits % 17 < 5) request.expert_us = expert_us;
    const size_t at = static_cast<size_t>(n) % kInFlight;
    if ((*open)[at] >= 0) {
      if (bits % 7 != 0) scheduler->first_token((*open)[at], *now_us);
      if (bits % 11 == 0) {
        scheduler->failed((*open)[at], *now_us);
      } else {
        scheduler->finished((*open)[at], *now_us);
      }
    }
    (*open)[at] = scheduler->dispatch(request, *now_us).ticket;
  }
}

TEST_CASE("allocation: a decision makes none, whatever the policy") {
  for (int policy = 0; policy <= static_cast<int>(DispatchPolicy::kLlmD); ++policy) {
    CAPTURE(policy);
    SchedulerOptions options;
    options.policy = static_cast<DispatchPolicy>(policy);
    options.weights = {65536, 65536, 65536, 65536, 65536, 65536, 150000, 59000, 2000, 200};
    options.stale_after_us = int64_t{1} << 40;
    options.experts_stale_after_us = 100000;
    Scheduler scheduler(options);
    EngineOptions engine;
    engine.prefill_tokens_per_second = 20000;
    engine.kv_tokens = 1000000;
    for (int32_t i = 0; i < kEngines; ++i) scheduler.add_engine(engine);
    std::vector<int32_t> open(kInFlight, -1);
    int64_t now_us = 0;
    uint64_t draws = 0;
    work(&scheduler, &open, &now_us, &draws, 2000);
    const long before = allocations;
    CHECK(before > 0);  // what is counted is what the library asks for
    work(&scheduler, &open, &now_us, &draws, 20000);
    CHECK(allocations == before);
  }
}

TEST_CASE("allocation: a queue that has been as long before makes none") {
  RequestQueue queue({QueuePolicy::kGimbal, 4000});
  const auto fill_and_drain = [&] {
    for (int n = 0; n < 1000; ++n) queue.push(n * 37 % 1000, n, n);
    for (int n = 0; n < 1000; ++n) queue.pop(2000);
  };
  fill_and_drain();
  const long before = allocations;
  for (int n = 0; n < 10; ++n) fill_and_drain();
  CHECK(allocations == before);
}

TEST_CASE("allocation: statistics make none, whichever way the window goes") {
  for (bool fades : {false, true}) {
    constexpr int32_t kLayers = 3, kExperts = 16, kChoices = 4, kTokens = 50;
    RoutingStatistics statistics({kLayers, 2, kExperts, fades, 100});
    std::vector<uint8_t> choices(kTokens * kLayers * kChoices, 5);
    std::vector<uint32_t> pairs(kLayers * kExperts, 9), counts(2 * kLayers * kExperts);
    const long before = allocations;
    for (int n = 0; n < 100; ++n) {
      statistics.observe(n % 2, choices.data(), kTokens, kChoices);
      statistics.observe_counts(0, 1, pairs.data(), kChoices);
      statistics.counts(16, counts.data());
    }
    CHECK(allocations == before);
  }
}

}  // namespace
}  // namespace gimbal

#endif
