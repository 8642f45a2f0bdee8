// Each planted fault is found, in every order of threads, with the place it is at; and what is right is let through.
#include <doctest/doctest.h>

#include <cstdlib>
#include <string>

#include "hostlayer.h"
#include "planted.h"
#include "test_machine.h"

namespace hostlayer {
namespace test {
namespace {

std::vector<PlantedKernels> builds() {
  std::vector<PlantedKernels> all{planted_plain()};
#if defined(HOSTLAYER_TEST_INSTRUMENTED)
  all.push_back(planted_checked_o1());
  all.push_back(planted_checked_o2());
#endif
  return all;
}

bool instrumented(const PlantedKernels& k) { return std::string(k.build) != "plain"; }

bool has_addr2line() {
  static const bool has = std::system("addr2line --version > /dev/null 2>&1") == 0;
  return has;
}

struct Schedule {
  uint64_t seed;
  Order order;
};

std::vector<Schedule> schedules(uint64_t seeds) {
  std::vector<Schedule> all{{1, Order::kForward}, {1, Order::kBackward}};
  for (uint64_t seed = 1; seed <= seeds; ++seed) all.push_back({seed, Order::kRandom});
  return all;
}

TEST_CASE("hostlayer: right kernels pass without a finding in every order") {
  for (const PlantedKernels& k : builds()) {
    for (const RightKernel& kernel : k.right) {
      for (const Schedule& s : schedules(60)) {
        const Machine machine(s.seed, s.order);
        const int wanted = s.seed % 4 == 0 ? 32 : s.seed % 4 == 1 ? 64 : s.seed % 4 == 2 ? 47 : 160;
        const int threads = (wanted + kernel.multiple - 1) / kernel.multiple * kernel.multiple;
        CAPTURE(std::string(k.build));
        CAPTURE(std::string(kernel.name));
        CAPTURE(s.seed);
        CHECK(kernel.run(threads));
        CHECK_MESSAGE(findings() == 0, last_report());
        if (findings() != 0) return;
        CHECK((counters().checked_accesses > 0) == instrumented(k));
        CHECK(live_allocations() == 0);
      }
    }
  }
}

TEST_CASE("hostlayer: right kernels run on the largest blocks") {
  for (const PlantedKernels& k : builds()) {
    for (const RightKernel& kernel : k.right) {
      const Machine machine(7, Order::kRandom);
      CAPTURE(std::string(kernel.name));
      CHECK(kernel.run(1024));
      CHECK_MESSAGE(findings() == 0, last_report());
    }
  }
}

TEST_CASE("hostlayer: every planted fault is found in every order") {
  for (const PlantedKernels& k : builds()) {
    for (const WrongKernel& kernel : k.wrong) {
      if (kernel.needs_instrumentation && !instrumented(k)) continue;
      for (const Schedule& s : schedules(4)) {
        const Machine machine(s.seed, s.order);
        CAPTURE(std::string(k.build));
        CAPTURE(std::string(kernel.name));
        CAPTURE(s.seed);
        CHECK(kernel.run() == kernel.error);
        CHECK(findings() == 1);
        const std::string text = last_report();
        CAPTURE(text);
        CHECK(text.find("hostlayer: " + std::string(kernel.finding)) == 0);
        for (const int* marked : kernel.lines) {
          const int line = *marked;
          if (line == 0 || (kernel.needs_instrumentation && !has_addr2line())) continue;
          CHECK(text.find("planted.inc:" + std::to_string(line)) != std::string::npos);
        }
        // The device stays broken until it is reset.
        int* pointer = nullptr;
        CHECK(cudaMalloc(&pointer, 4) == kernel.error);
        CHECK(cudaPeekAtLastError() == kernel.error);
        CHECK(cudaDeviceReset() == cudaSuccess);
        CHECK(k.right[0].run(64));
      }
    }
  }
}

TEST_CASE("hostlayer: a finding names both threads and what they touched") {
#if defined(HOSTLAYER_TEST_INSTRUMENTED)
  const Machine machine(3, Order::kForward);
  for (const WrongKernel& kernel : planted_checked_o2().wrong) {
    if (std::string(kernel.name) == "missing_syncwarp") CHECK(kernel.run() == cudaErrorLaunchFailure);
  }
  const std::string text = last_report();
  CAPTURE(text);
  CHECK(text.find("write of 4 bytes by thread (1,0,0)") != std::string::npos);
  CHECK(text.find("conflicts with the read by thread (0,0,0)") != std::string::npos);
  CHECK(text.find("byte 4 of the block's 256 bytes of shared memory") != std::string::npos);
  CHECK(text.find("block (0,0,0), 64 threads") != std::string::npos);
#endif
}

TEST_CASE("hostlayer: a shuffle need not order memory") {
#if defined(HOSTLAYER_TEST_INSTRUMENTED)
  for (const bool orders : {true, false}) {
    const Machine machine(3, Order::kRandom);
    Config c = config();
    c.shuffles_order_memory = orders;
    configure(c);
    for (const PlantedKernels& k : {planted_checked_o1(), planted_checked_o2()}) {
      CHECK(k.ordered_by_a_shuffle() == (orders ? cudaSuccess : cudaErrorLaunchFailure));
      CHECK(cudaDeviceReset() == cudaSuccess);
    }
    CHECK(findings() == (orders ? 0 : 2));
  }
#endif
}

TEST_CASE("hostlayer: what a kernel that is not instrumented may have written counts as written") {
#if defined(HOSTLAYER_TEST_INSTRUMENTED)
  for (const bool instrumented_writer : {false, true}) {
    const Machine machine;
    const PlantedKernels checked = planted_checked_o2();
    int* from = nullptr;
    int* to = nullptr;
    CHECK(cudaMalloc(&from, 256) == cudaSuccess);
    CHECK(cudaMalloc(&to, 256) == cudaSuccess);
    CHECK((instrumented_writer ? checked : planted_plain()).copy(nullptr, from) == cudaSuccess);
    CHECK(checked.copy(from, to) == cudaSuccess);
    int* later = nullptr;
    CHECK(cudaMalloc(&later, 256) == cudaSuccess);
    CHECK(checked.copy(later, to) == cudaErrorLaunchFailure);
    CHECK(last_report().find("hostlayer: uninitialised: read") == 0);
  }
#endif
}

TEST_CASE("hostlayer: no number of synchronisations is too large") {
#if defined(HOSTLAYER_TEST_INSTRUMENTED)
  const PlantedKernels k = planted_checked_o2();
  const Machine machine;
  // Numbers end at 2^20; from half of it on, a barrier begins anew. Two lanes of two are a block, two of three are not.
  for (const int threads : {2, 3}) {
    for (const int rounds : {200000, 360000}) CHECK(k.synchronise_often(threads, rounds) == cudaSuccess);
  }
  CHECK_MESSAGE(findings() == 0, last_report());
#endif
}

TEST_CASE("hostlayer: what a library exports by name") {
  const Machine machine;
  CHECK(std::string(hostlayer_last_report()).empty());
  const PlantedKernels k = planted_plain();
  for (const WrongKernel& kernel : k.wrong) {
    if (std::string(kernel.name) == "traps") CHECK(kernel.run() == cudaErrorLaunchFailure);
  }
  CHECK(std::string(hostlayer_last_report()).find("hostlayer: trap: thread (7,0,0)") == 0);
  CHECK(hostlayer_count("findings") == 1);
  CHECK(hostlayer_count("launches") == 1);
  CHECK(hostlayer_count("threads") == 64);
  CHECK(hostlayer_count("live_allocations") == 0);
  CHECK(hostlayer_count("no such thing") == -1);
  setenv("HOSTLAYER_SEED", "4242", 1);
  hostlayer_read_environment();
  CHECK(config().seed == 4242);
  unsetenv("HOSTLAYER_SEED");
}

TEST_CASE("hostlayer: each check can be switched off") {
#if defined(HOSTLAYER_TEST_INSTRUMENTED)
  for (const WrongKernel& kernel : planted_checked_o1().wrong) {
    const std::string finding = kernel.finding;
    Config c = environment_config();
    c.print = false;
    c.check_races = finding != "race";
    c.check_initialised = finding != "uninitialised";
    if (c.check_races && c.check_initialised) continue;
    configure(c);
    reset();
    CAPTURE(std::string(kernel.name));
    CHECK(kernel.run() == cudaSuccess);
    CHECK(findings() == 0);
  }
  configure(environment_config());
  reset();
#endif
}

}  // namespace
}  // namespace test
}  // namespace hostlayer
