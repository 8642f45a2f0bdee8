// Running a grid: its blocks one after another, each thread of a block as a fiber that runs until it waits or returns. Which
// thread or block comes next is drawn anew each time. One grid runs at a time in the process (the caller holds the lock).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fault.h"
#include "fiber.h"
#include "hostlayer.h"
#include "include/cuda_runtime.h"
#include "random.h"

namespace hostlayer {

// Of the two functions of a fiber that are never returned from: the address sanitizer is to put nothing around their locals,
// which would stay there for the next fiber. They are not [[noreturn]] either, for which it would clear the whole stack.
#define HOSTLAYER_FOREVER __attribute__((no_sanitize("address")))

constexpr int kLanes = 32;
constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / kLanes;
constexpr uint32_t kMaxStamp = (1u << 20) - 1;  // synchronisations of one warp between two barriers of its block

struct Launch {
  const void* kernel = nullptr;
  launching::Invoke invoke = nullptr;
  bool instrumented = false;
  std::vector<unsigned char> parameters;
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  int device = 0;
};

// A thread in a warp primitive of some lanes of its warp, or the last one it was in.
struct Lane {
  device::Collective kind{};
  device::Site site{nullptr, 0};
  uint32_t mask = 0;
  uint32_t argument = 0;
  int width = 0;
  uint64_t value = 0;
  uint64_t result = 0;
};

// The lanes of one warp, and which of their accesses are ordered by the warp's own synchronisation. `syncs` counts the
// synchronising collectives of the warp and stamps every access; an access of lane t with a stamp below seen[u][t] (or below
// `all_seen`) comes before whatever lane u does next.
struct Warp {
  uint32_t present = 0;  // bit per lane that exists
  uint32_t returned = 0;
  uint32_t waiting = 0;  // in primitives of some lanes: see each lane's own entry
  // The primitive that takes all lanes and that these wait in: the same for all of them.
  uint32_t waiting_all = 0;
  uint32_t mask = 0;
  device::Collective kind{};
  device::Site site{nullptr, 0};
  uint32_t side = 0;    // of the two buffers of values; the other one may still be read by lanes that have not run since
  uint64_t result = 0;  // where it is one for all
  uint32_t retries = 0;  // lanes that must enter their primitive again, since another lane has returned

  uint32_t syncs = 0;
  uint32_t all_seen = 0;
  bool partial = false;  // some lanes have synchronised among themselves since all did
  uint32_t seen[kLanes][kLanes];
};

class Execution {
 public:
  // Runs the whole grid, or up to the first finding, whose error it returns.
  cudaError_t run(const Launch& launch, const Config& config, uint64_t launch_number);

  bool running() const { return running_ >= 0; }
  const Config& config() const { return *config_; }
  const Launch& launch() const { return *launch_; }
  int current() const { return running_; }  // the number of the thread in its block; -1 where none runs
  uint3 thread_index() const { return indices_[running_]; }
  uint3 block_index() const { return block_index_; }
  int64_t block_number() const { return block_number_; }
  unsigned char* shared() const { return shared_; }
  uint32_t epoch() const { return epoch_; }
  uint32_t block_epoch() const { return block_epoch_; }
  uint32_t launch_epoch() const { return launch_epoch_; }
  const Warp& warp_of(int thread) const { return warps_[thread / kLanes]; }
  // The block that ran in this epoch of the present launch.
  int64_t block_of_epoch(uint32_t epoch) const;
  const StackPool& stacks() const { return stacks_; }
  uint32_t active_mask() const;
  // Epochs count from the start again; nothing may remember older ones.
  void restart_epochs() { epoch_ = 1; }

  void barrier(device::Site site);
  int barrier(device::BarrierVote vote, int predicate, device::Site site);
  void sync_warp(uint32_t mask, device::Site site);
  uint64_t combine(device::Collective kind, uint32_t mask, uint64_t value, device::Site site);
  uint64_t exchange(device::Collective kind, uint32_t mask, uint64_t value, uint32_t argument, int width, device::Site site);
  // Ends the launch with a finding. Called on a thread's stack, which is left for good.
  [[noreturn]] void fail(const Fault& fault);

  Counters counters;
  std::string describe_thread(int thread) const;
  std::string describe_block(int64_t block) const;

 private:
  HOSTLAYER_FOREVER static void thread_main();
  void start_block();
  void run_block();
  void switch_to_next(int self);
  int take_next();
  void make_ready(int thread);
  void make_all_ready();
  void arrive(device::Site site);
  void release_barrier();
  void restart_stamps();
  [[noreturn]] void fail_arrival(device::Site site);
  bool enter_whole_warp(Warp& warp, int self, device::Collective kind, uint32_t mask, uint64_t value, device::Site site);
  void complete_whole_warp(Warp& warp, int base);
  void check_smaller_masks(const Warp& warp, int self, uint32_t mask, device::Site site);
  bool must_retry(Warp& warp, int self);
  uint64_t collective(device::Collective kind, uint32_t mask, uint64_t value, uint32_t argument, int width,
                      device::Site site);
  void check_collective(const Warp& warp, int self);
  void complete_collective(Warp& warp, int base, uint32_t mask);
  void leave_waiting_lanes(Warp& warp, int self, Fault fault);
  [[noreturn]] void fail_collective(int self, uint32_t mask, device::Site site, uint32_t other_lane, uint32_t other_mask,
                                    device::Site other_site);
  // What is not there to be read is undefined; it is never right twice.
  uint64_t undefined_value() { return mix(random_.next()); }
  void order_lanes(Warp& warp, uint32_t mask);
  HOSTLAYER_FOREVER void finish_thread();
  [[noreturn]] void hang();
  std::string describe_waiting() const;
  std::string text_of(const Fault& fault) const;

  const Config* config_ = nullptr;
  const Launch* launch_ = nullptr;
  Random random_{0};
  StackPool stacks_;
  Context caller_;
  int running_ = -1;
  uint3 block_index_{0, 0, 0};
  int64_t block_number_ = 0;
  unsigned char* shared_ = nullptr;

  int count_ = 0;  // threads of the block
  int live_ = 0;   // that have not returned
  int arrived_ = 0;
  bool check_divergence_ = true;
  bool shuffles_order_memory_ = true;
  device::Site barrier_site_{nullptr, 0};  // of the first that arrived
  int barrier_first_ = 0;
  device::BarrierVote barrier_vote_{};
  int votes_ = 0;
  int barrier_result_ = 0;

  bool random_order_ = true;
  uint32_t ready_count_ = 0;
  uint32_t ready_head_ = 0;            // of the queue, where the order is fixed
  uint16_t ready_[kMaxThreads] = {};   // a set in random order, a ring in a fixed one
  uint16_t in_order_[kMaxThreads] = {};

  uint32_t epoch_ = 1;  // counts barriers and blocks over the life of the process
  uint32_t block_epoch_ = 1;
  uint32_t launch_epoch_ = 1;
  std::vector<uint32_t> epochs_;          // first of each block run, in the order of running
  std::vector<int64_t> blocks_;           // their numbers
  bool stamps_are_high_ = false;
  Fault fault_;

  // [threads of the block]; apart, since a barrier touches the first two of every thread
  Context contexts_[kMaxThreads];
  uint32_t arrived_at_[kMaxThreads] = {};  // the epoch whose end the thread waits for, or last waited for
  uint3 indices_[kMaxThreads] = {};
  uint64_t values_[2][kMaxThreads] = {};  // that the threads bring to a primitive of the whole warp
  Lane lanes_[kMaxThreads];
  Warp warps_[kMaxWarps];
};

extern Execution& execution;  // never destroyed

// A finding becomes the last report; `text` is complete but for the heading.
void report(const std::string& text);
std::string last_report_text();
void forget_reports();

}  // namespace hostlayer
