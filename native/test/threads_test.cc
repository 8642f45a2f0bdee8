// The thread pool: every index once, exceptions come back, and it can be used again after one.
#include <doctest/doctest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

#include "../solver/threads.h"

using gimbal::Threads;

TEST_CASE("threads: every index runs once, whatever the numbers") {
  Threads threads;
  for (int32_t count : {1, 2, 5, 3, 1}) {
    threads.resize(count);
    CHECK(threads.count() == count);
    for (int64_t n : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(n));
      threads.parallel_for(n, [&](int64_t i) { ++runs[static_cast<size_t>(i)]; });
      for (const auto& r : runs) REQUIRE(r.load() == 1);
    }
  }
}

TEST_CASE("threads: an exception comes back after all have stopped, and the pool goes on") {
  for (int32_t count : {1, 4}) {
    Threads threads;
    threads.resize(count);
    for (int round = 0; round < 50; ++round) {
      std::atomic<int> running{0};
      CHECK_THROWS_WITH_AS(threads.parallel_for(100,
                                                [&](int64_t i) {
                                                  ++running;
                                                  if (i == 3) {
                                                    --running;
                                                    throw std::runtime_error("index 3");
                                                  }
                                                  --running;
                                                }),
                           "index 3", std::runtime_error);
      REQUIRE(running.load() == 0);
      std::atomic<int64_t> sum{0};
      threads.parallel_for(100, [&](int64_t i) { sum += i; });
      REQUIRE(sum.load() == 4950);
    }
  }
}

TEST_CASE("threads: several at once lose no exception") {
  Threads threads;
  threads.resize(4);
  for (int round = 0; round < 50; ++round) {
    CHECK_THROWS_AS(threads.parallel_for(64, [](int64_t) { throw std::runtime_error("each"); }), std::runtime_error);
  }
  int64_t ran = 0;
  threads.resize(1);
  threads.parallel_for(5, [&](int64_t) { ++ran; });
  CHECK(ran == 5);
}
