// Under the address sanitizer, accesses out of bounds end the process with the source line. Each is made in a child process,
// whose words are read.
#include <doctest/doctest.h>

#if defined(__SANITIZE_ADDRESS__)
#define HOSTLAYER_TEST_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HOSTLAYER_TEST_ASAN 1
#endif
#endif

#if defined(HOSTLAYER_TEST_ASAN)
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "planted.h"
#include "test_machine.h"

namespace hostlayer {
namespace test {
namespace {

// What the child writes to stderr until it ends, and whether it ended well.
struct Child {
  std::string words;
  bool ended_well = false;
};

Child run_in_child(cudaError_t (*run)()) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t pid = fork();
  REQUIRE(pid >= 0);
  if (pid == 0) {
    dup2(ends[1], STDERR_FILENO);
    _exit(run() == cudaSuccess ? 0 : 3);
  }
  close(ends[1]);
  Child child;
  char buffer[4096];
  for (ssize_t got; (got = read(ends[0], buffer, sizeof(buffer))) > 0;) child.words.append(buffer, static_cast<size_t>(got));
  close(ends[0]);
  int status = 0;
  waitpid(pid, &status, 0);
  child.ended_well = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  return child;
}

TEST_CASE("hostlayer: the address sanitizer stops at accesses out of bounds") {
  int found = 0;
  for (const WrongKernel& kernel : planted_plain().wrong) {
    const std::string finding = kernel.finding;
    if (finding != "out of bounds" && finding != "device memory on the host") continue;
    const Machine machine;
    const Child child = run_in_child(kernel.run);
    CAPTURE(std::string(kernel.name));
    CAPTURE(child.words);
    const bool by_host = finding != "out of bounds";
    CHECK(child.ended_well == by_host);  // the host may see device memory here, though not outside of allocations
    if (by_host) continue;
    CHECK(child.words.find("AddressSanitizer: use-after-poison") != std::string::npos);
    CHECK(child.words.find("planted.inc:") != std::string::npos);
    ++found;
  }
  CHECK(found == 4);
}

TEST_CASE("hostlayer: a kernel that a check has stopped leaves nothing behind for the sanitizer") {
  for (int round = 0; round < 3; ++round) {
    for (const WrongKernel& kernel : planted_plain().wrong) {
      if (kernel.needs_instrumentation) continue;
      const Machine machine(static_cast<uint64_t>(round));
      CAPTURE(std::string(kernel.name));
      CHECK(kernel.run() == kernel.error);
      CHECK(cudaDeviceReset() == cudaSuccess);
      for (const RightKernel& right : planted_plain().right) CHECK(right.run(64));
    }
  }
}

}  // namespace
}  // namespace test
}  // namespace hostlayer
#endif
