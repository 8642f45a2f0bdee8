// Steering the host execution layer from a test: what machine it plays, in which order threads run, which calls fail, and
// what its checks have found. Every field of Config has an environment variable, read when the process (or the shared
// library that holds the layer) starts; README.md lists them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace hostlayer {

enum class Order { kRandom, kForward, kBackward };
enum class Driver { kCurrent, kOld, kNone };

struct Config {
  uint64_t seed = 1;              // HOSTLAYER_SEED: of orders and of poison
  Order order = Order::kRandom;   // HOSTLAYER_ORDER=random|forward|backward
  int devices = 1;                // HOSTLAYER_DEVICES
  Driver driver = Driver::kCurrent;  // HOSTLAYER_DRIVER=current|old|none
  size_t memory_bytes = size_t{1} << 30;   // HOSTLAYER_MEMORY_MB: of each device
  size_t shared_bytes = size_t{227} << 10;  // HOSTLAYER_SHARED_KB: the most that a block may opt in to
  int multiprocessors = 8;        // HOSTLAYER_SMS
  int compute_capability = 90;    // HOSTLAYER_CC
  size_t stack_bytes = 0;         // HOSTLAYER_STACK_KB: of a thread, rounded up; 0 takes 64 KiB (256 KiB with ASan)
  bool latency = true;            // HOSTLAYER_LATENCY=off runs queued work at the call instead of at the synchronisation
  std::string fail;               // HOSTLAYER_FAIL=api:nth:error[,...]
  bool check_divergence = true;   // HOSTLAYER_CHECK=divergence,races,bounds,initialised|all|none
  bool check_races = true;
  bool check_bounds = true;
  bool check_initialised = true;
  bool shuffles_order_memory = true;  // HOSTLAYER_SHUFFLES_ORDER=off: of warp primitives, only __syncwarp orders accesses
  bool print = true;              // HOSTLAYER_PRINT=off: findings are not written to stderr
  std::string ptx;                // HOSTLAYER_PTX: a file; kernels are run as the compiler made them, not by their sources
  std::string ptx_report;         // HOSTLAYER_PTX_REPORT: a file that ptx_report() is written to when the process ends
};

// What was counted of kernels that ran as PTX since that file was named, as JSON (README.md); empty where there is none.
std::string ptx_report();

// What was done since the start or the last reset.
struct Counters {
  int64_t launches = 0;  // run, not only queued
  int64_t blocks = 0;
  int64_t threads = 0;
  int64_t barriers = 0;          // of blocks
  int64_t collectives = 0;       // of warps: shuffles, votes, reductions, __syncwarp
  int64_t checked_accesses = 0;  // to device and shared memory; zero where the kernels are not instrumented
  int64_t graph_launches = 0;
  int64_t copied_bytes = 0;
  int64_t findings = 0;
};

Config config();
// Takes effect at once and restarts seeds, fault injection and call counts; memory, streams and findings stay.
void configure(const Config& config);
// The configuration of the environment.
Config environment_config();
// As in a new process, under the present configuration: everything allocated is gone, errors and findings are forgotten.
void reset();

Counters counters();

// The text of the last finding, empty if there was none; `findings` counts them.
std::string last_report();
int64_t findings();
void clear_findings();

// What was allocated or created and not yet freed or destroyed.
int64_t live_allocations();       // cudaMalloc
int64_t live_bytes();             // of them
int64_t live_host_allocations();  // cudaHostAlloc, cudaMallocHost
int64_t live_objects();           // streams, events, graphs and executable graphs
// How often a call of the runtime API was made, e.g. "cudaMalloc", since the last configure or reset.
int64_t calls(const char* api);

}  // namespace hostlayer

// For whoever has loaded a library that holds the layer, and finds these by name. The text is that of the last finding and
// stays until the next call. The count is a field of Counters by its name, or "live_allocations", "live_host_allocations" or
// "live_objects"; -1 for anything else. The third takes up the environment again, as `configure` does.
extern "C" {
__attribute__((visibility("default"))) const char* hostlayer_last_report();
__attribute__((visibility("default"))) long long hostlayer_count(const char* what);
__attribute__((visibility("default"))) void hostlayer_read_environment();
}
