// Fibers, barriers and warp primitives of the running block.
#include "execution.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>

#include "memory.h"
#include "world.h"

namespace hostlayer {

namespace {

constexpr uint32_t kBlind = ~0u;  // of a warp: all accesses of its lanes count as ordered

alignas(Execution) unsigned char execution_storage[sizeof(Execution)];
[[maybe_unused]] Execution* const execution_made = new (execution_storage) Execution;

}  // namespace

Execution& execution = reinterpret_cast<Execution&>(execution_storage);

namespace {

// Bytes by which a thread's frames are shifted, so that equal frames of different stacks do not all fall into the same sets
// of the caches.
constexpr size_t kMostColour = 4096;
size_t colour_of(int thread) { return static_cast<size_t>(thread) * 17 * 64 % kMostColour; }

size_t default_stack_bytes() {
#if defined(HOSTLAYER_ASAN)
  return size_t{256} << 10;  // redzones around every local
#else
  return size_t{64} << 10;
#endif
}

inline bool same_place(device::Site a, device::Site b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

uint32_t lowest(uint32_t lanes) { return static_cast<uint32_t>(__builtin_ctz(lanes)); }

// Calls f(lane) for each lane of the mask, from the lowest.
template <class F>
void for_lanes(uint32_t lanes, F f) {
  for (; lanes != 0; lanes &= lanes - 1) f(static_cast<int>(lowest(lanes)));
}

uint3 coordinates(int64_t number, uint3 size) {
  const int64_t x = size.x;
  const int64_t y = size.y;
  return {static_cast<unsigned>(number % x), static_cast<unsigned>(number / x % y), static_cast<unsigned>(number / x / y)};
}

// The lane that a shuffle reads; -1 for the lane's own value (the source lies outside the lane's group).
inline int source_lane(device::Collective kind, int lane, uint32_t distance, int width) {
  const int argument = static_cast<int>(distance);
  const int group = lane & ~(width - 1);
  switch (kind) {
    case device::Collective::kShuffle:
      return group + (argument & (width - 1));
    case device::Collective::kShuffleUp:
      return distance > static_cast<uint32_t>(lane - group) ? -1 : lane - argument;
    case device::Collective::kShuffleDown:
      return distance >= static_cast<uint32_t>(group + width - lane) ? -1 : lane + argument;
    default: {
      const uint32_t source = static_cast<uint32_t>(lane) ^ distance;
      return source >= static_cast<uint32_t>(group + width) ? -1 : static_cast<int>(source);
    }
  }
}

// The combined values of `lanes` lanes: values[0], values[1], ...
template <class T, class F>
uint64_t fold(const uint64_t* values, int lanes, F f) {
  T result = static_cast<T>(values[0]);
  for (int i = 1; i < lanes; ++i) result = f(result, static_cast<T>(values[i]));
  return static_cast<uint64_t>(static_cast<uint32_t>(result));
}

uint64_t combined(device::Collective kind, const uint64_t* values, int lanes) {
  using device::Collective;
  switch (kind) {
    case Collective::kReduceMinSigned:
      return fold<int32_t>(values, lanes, [](int32_t a, int32_t b) { return std::min(a, b); });
    case Collective::kReduceMaxSigned:
      return fold<int32_t>(values, lanes, [](int32_t a, int32_t b) { return std::max(a, b); });
    case Collective::kReduceMin:
      return fold<uint32_t>(values, lanes, [](uint32_t a, uint32_t b) { return std::min(a, b); });
    case Collective::kReduceMax:
      return fold<uint32_t>(values, lanes, [](uint32_t a, uint32_t b) { return std::max(a, b); });
    case Collective::kReduceAdd:
    case Collective::kReduceAddSigned:
      return fold<uint32_t>(values, lanes, [](uint32_t a, uint32_t b) { return a + b; });
    case Collective::kReduceAnd:
    case Collective::kAll:
      return fold<uint32_t>(values, lanes, [](uint32_t a, uint32_t b) { return a & b; });
    case Collective::kReduceOr:
    case Collective::kAny:
      return fold<uint32_t>(values, lanes, [](uint32_t a, uint32_t b) { return a | b; });
    case Collective::kReduceXor:
      return fold<uint32_t>(values, lanes, [](uint32_t a, uint32_t b) { return a ^ b; });
    default:
      return 0;
  }
}

}  // namespace

cudaError_t Execution::run(const Launch& launch, const Config& config, uint64_t launch_number) {
  config_ = &config;
  launch_ = &launch;
  random_ = Random(mix(config.seed) ^ launch_number);
  random_order_ = config.order == Order::kRandom;
  check_divergence_ = config.check_divergence;
  shuffles_order_memory_ = config.shuffles_order_memory;
  count_ = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  const size_t stack = config.stack_bytes == 0 ? default_stack_bytes() : config.stack_bytes;
  if (!stacks_.reserve(kMaxThreads, stack + kMostColour)) {
    return cudaErrorLaunchOutOfResources;
  }
  for (int i = 0; i < count_; ++i) {
    indices_[i] = coordinates(i, launch.block);
    in_order_[i] = static_cast<uint16_t>(config.order == Order::kBackward ? count_ - 1 - i : i);
  }
  const int64_t grid = static_cast<int64_t>(launch.grid.x) * launch.grid.y * launch.grid.z;
  blocks_.resize(static_cast<size_t>(grid));
  for (int64_t b = 0; b < grid; ++b) blocks_[b] = config.order == Order::kBackward ? grid - 1 - b : b;
  if (random_order_) {
    for (size_t b = blocks_.size(); b > 1; --b) std::swap(blocks_[b - 1], blocks_[random_.below(static_cast<uint32_t>(b))]);
  }
  epochs_.clear();
  launch_epoch_ = ++epoch_;
  ++counters.launches;
  fault_ = Fault{};
  for (const int64_t block : blocks_) {
    block_number_ = block;
    block_index_ = coordinates(block, launch.grid);
    run_block();
    if (fault_.kind != FaultKind::kNone) break;
  }
  cudaError_t error = cudaSuccess;
  if (fault_.kind != FaultKind::kNone) {
    stacks_.forget_frames();
    report(text_of(fault_));
    error = error_of(fault_.kind);
  }
  launch_ = nullptr;
  config_ = nullptr;
  return error;
}

void Execution::start_block() {
  block_epoch_ = ++epoch_;
  epochs_.push_back(epoch_);
  ++counters.blocks;
  counters.threads += count_;
  live_ = count_;
  arrived_ = 0;
  votes_ = 0;
  shared_ = world.memory.open_shared(launch_->shared_bytes, mix(random_.next()));
  for (int i = 0; i < count_; ++i) {
    prepare(&contexts_[i], stacks_.stack(static_cast<size_t>(i)), colour_of(i), &Execution::thread_main);
  }
  for (int w = 0; w * kLanes < count_; ++w) {
    const int lanes = std::min(kLanes, count_ - w * kLanes);
    Warp& warp = warps_[w];
    warp.present = lanes == kLanes ? 0xffffffffu : (1u << lanes) - 1;
    warp.returned = 0;
    warp.waiting = 0;
    warp.waiting_all = 0;
    warp.retries = 0;
    warp.syncs = 0;
    warp.all_seen = 0;
    warp.partial = false;
  }
  make_all_ready();
}

void Execution::run_block() {
  start_block();
#if defined(HOSTLAYER_ASAN)
  caller_.stack_bytes = 0;  // the first fiber learns whose stack it came from
#endif
  running_ = take_next();
  switch_context(&caller_, &contexts_[running_]);
  running_ = -1;
}

void Execution::thread_main() {
  Execution& e = execution;
#if defined(HOSTLAYER_ASAN)
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (e.caller_.stack_bytes == 0) {
    e.caller_.stack_bottom = bottom;
    e.caller_.stack_bytes = bytes;
  }
#endif
  e.launch_->invoke(e.launch_->kernel, e.launch_->parameters.data());
  e.finish_thread();
}

// Lanes of the warp wait for one that has returned: a finding, or else they wait for fewer.
void Execution::leave_waiting_lanes(Warp& warp, int self, Fault fault) {
  const int base = self & ~(kLanes - 1);
  if (warp.waiting_all != 0) {
    fault.other_site = warp.site;
    if (check_divergence_) fail(fault);
    warp.retries |= warp.waiting_all;
    for_lanes(warp.waiting_all, [&](int lane) { make_ready(base + lane); });
    warp.waiting_all = 0;
  }
  uint32_t completed = 0;
  for_lanes(warp.waiting, [&](int lane) {
    const Lane& other = lanes_[base + lane];
    if ((other.mask >> (self - base) & 1) == 0 || (completed >> lane & 1) != 0) return;
    fault.other_site = other.site;
    if (check_divergence_) fail(fault);
    const uint32_t mask = other.mask & warp.present & ~warp.returned;
    if ((warp.waiting & mask) == mask) {
      completed |= mask;
      complete_collective(warp, base, mask);
    }
  });
}

void Execution::finish_thread() {
  const int self = running_;
  Warp& warp = warps_[self / kLanes];
  warp.returned |= 1u << self % kLanes;
  --live_;
  Fault fault;
  fault.kind = FaultKind::kReturnedBeforeBarrier;
  fault.mine.thread = self;
  fault.mine.block = block_number_;
  if (arrived_ != 0) {
    fault.other_site = barrier_site_;
    if (check_divergence_) fail(fault);
    if (arrived_ == live_) release_barrier();
  }
  if ((warp.waiting | warp.waiting_all) != 0) leave_waiting_lanes(warp, self, fault);
  if (live_ == 0) {
    switch_context(&contexts_[self], &caller_, true);
  } else {
    running_ = take_next();
    if (running_ < 0) {
      running_ = self;
      hang();
    }
    switch_context(&contexts_[self], &contexts_[running_], true);
  }
}

// A random one of the threads that can run, or the one that has waited longest; -1 where there is none.
inline int Execution::take_next() {
  if (ready_count_ == 0) return -1;
  uint16_t number;
  if (random_order_) {
    const uint32_t at = random_.below(ready_count_--);
    number = ready_[at];
    ready_[at] = ready_[ready_count_];
  } else {
    --ready_count_;
    number = ready_[ready_head_];
    ready_head_ = (ready_head_ + 1) % kMaxThreads;
  }
  return number;
}

inline void Execution::make_ready(int thread) {
  const uint32_t at = random_order_ ? ready_count_ : (ready_head_ + ready_count_) % kMaxThreads;
  ready_[at] = static_cast<uint16_t>(thread);
  ++ready_count_;
}

void Execution::make_all_ready() {
  ready_head_ = 0;
  ready_count_ = static_cast<uint32_t>(count_);
  std::memcpy(ready_, in_order_, static_cast<size_t>(count_) * sizeof(ready_[0]));
}

inline void Execution::switch_to_next(int self) {
  const int next = take_next();
  if (next < 0) hang();
  if (next == self) return;
  running_ = next;
  switch_context(&contexts_[self], &contexts_[next]);
}

// A barrier orders everything before it, so stamps may begin again.
void Execution::restart_stamps() {
  for (Warp& warp : warps_) {
    warp.syncs = warp.all_seen = 0;
    warp.partial = false;
  }
  stamps_are_high_ = false;
}

void Execution::release_barrier() {
  const uint32_t ended = epoch_++;
  ++counters.barriers;
  switch (barrier_vote_) {
    case device::BarrierVote::kAnd:
      barrier_result_ = votes_ == arrived_;
      break;
    case device::BarrierVote::kOr:
      barrier_result_ = votes_ != 0;
      break;
    default:
      barrier_result_ = votes_;
  }
  if (stamps_are_high_) restart_stamps();
  const bool all = arrived_ == count_;
  arrived_ = 0;
  votes_ = 0;
  if (all) {
    make_all_ready();
    return;
  }
  for (int i = 0; i < count_; ++i) {
    const int thread = in_order_[i];
    if (arrived_at_[thread] == ended) make_ready(thread);
  }
}

void Execution::fail_arrival(device::Site site) {
  Fault fault;
  fault.mine.thread = running_;
  fault.mine.block = block_number_;
  fault.site = site;
  fault.kind = FaultKind::kReturnedBeforeBarrier;
  if (live_ == count_) {
    fault.kind = FaultKind::kDivergentBarrier;
    fault.other_site = barrier_site_;
    fault.other.thread = barrier_first_;
  }
  fail(fault);
}

inline void Execution::arrive(device::Site site) {
  if (arrived_ == 0) {
    barrier_site_ = site;
    barrier_first_ = running_;
    if (check_divergence_ && live_ != count_) fail_arrival(site);
  } else if (check_divergence_ && !same_place(site, barrier_site_)) {
    fail_arrival(site);
  }
  arrived_at_[running_] = epoch_;
  ++arrived_;
}

// Nothing is left to do after the switch, so that it ends in a jump: this is what kernels do most.
void Execution::barrier(device::Site site) {
  arrive(site);
  if (arrived_ == live_) release_barrier();
  switch_to_next(running_);
}

int Execution::barrier(device::BarrierVote vote, int predicate, device::Site site) {
  arrive(site);
  barrier_vote_ = vote;
  votes_ += predicate != 0;
  if (arrived_ == live_) release_barrier();
  switch_to_next(running_);
  return barrier_result_;
}

// Two lanes that wait for each other must do so for the same thing. One that agrees speaks for the others: they have been
// compared with it.
void Execution::check_collective(const Warp& warp, int self) {
  const uint32_t bit = 1u << self % kLanes;
  const Lane& mine = lanes_[self];
  if ((mine.mask & bit) == 0 || (mine.mask & warp.returned) != 0) {
    Fault fault;
    fault.kind = FaultKind::kForeignMask;
    fault.mine.thread = self;
    fault.mine.block = block_number_;
    fault.site = mine.site;
    fault.mask = mine.mask;
    fault.other_mask = warp.returned;
    fail(fault);
  }
  if ((warp.waiting_all & mine.mask) != 0) {
    fail_collective(self, mine.mask, mine.site, lowest(warp.waiting_all & mine.mask), warp.mask, warp.site);
  }
  for (uint32_t others = warp.waiting & mine.mask & ~bit; others != 0; others &= others - 1) {
    const Lane& other = lanes_[(self & ~(kLanes - 1)) + static_cast<int>(lowest(others))];
    if (other.kind == mine.kind && other.mask == mine.mask && same_place(other.site, mine.site)) return;
    if ((other.mask & bit) == 0) continue;  // may go on without this lane, and come here later
    fail_collective(self, mine.mask, mine.site, lowest(others), other.mask, other.site);
  }
}

void Execution::fail_collective(int self, uint32_t mask, device::Site site, uint32_t other_lane, uint32_t other_mask,
                                device::Site other_site) {
  Fault fault;
  fault.kind = FaultKind::kDivergentCollective;
  fault.mine.thread = self;
  fault.mine.block = block_number_;
  fault.site = site;
  fault.mask = mask;
  fault.other.thread = (self & ~(kLanes - 1)) + static_cast<int>(other_lane);
  fault.other_site = other_site;
  fault.other_mask = other_mask;
  fail(fault);
}

// ---- primitives of all lanes, which is what most are -------------------------------------------------------------------

// Joins the lanes that wait; false where this primitive is for some lanes only. Kept short: the lanes agree on everything
// but their values, so there is one note of it for all.
inline bool Execution::enter_whole_warp(Warp& warp, int self, device::Collective kind, uint32_t mask, uint64_t value,
                                        device::Site site) {
  if ((mask & warp.present) != warp.present || warp.returned != 0) return false;
  if (warp.waiting_all == 0) {
    warp.kind = kind;
    warp.site = site;
    warp.mask = mask;
  } else if (check_divergence_ && (warp.kind != kind || warp.mask != mask || !same_place(warp.site, site))) {
    fail_collective(self, mask, site, lowest(warp.waiting_all), warp.mask, warp.site);
  }
  if (warp.waiting != 0 && check_divergence_) check_smaller_masks(warp, self, mask, site);
  warp.waiting_all |= 1u << self % kLanes;
  values_[warp.side][self] = value;
  if (warp.waiting_all == warp.present) complete_whole_warp(warp, self & ~(kLanes - 1));
  return true;
}

void Execution::complete_whole_warp(Warp& warp, int base) {
  const uint64_t* const values = &values_[warp.side][base];
  const int lanes = __builtin_popcount(warp.present);
  if (warp.kind == device::Collective::kBallot) {
    warp.result = 0;
    for (int lane = 0; lane < lanes; ++lane) warp.result |= values[lane] << lane;
  } else {
    warp.result = combined(warp.kind, values, lanes);  // of no meaning where each lane has its own
  }
  ++counters.collectives;
  warp.waiting_all = 0;
  warp.side ^= 1;
  if (warp.kind == device::Collective::kSync || shuffles_order_memory_) order_lanes(warp, warp.present);
  if (random_order_) {
    uint16_t* const ready = ready_ + ready_count_;
    for (int lane = 0; lane < lanes; ++lane) ready[lane] = static_cast<uint16_t>(base + lane);
    ready_count_ += static_cast<uint32_t>(lanes);
  } else {
    const bool backward = config_->order == Order::kBackward;
    for (int lane = 0; lane < lanes; ++lane) make_ready(base + (backward ? lanes - 1 - lane : lane));
  }
}

// Lanes that wait for some lanes and for this one wait in vain.
void Execution::check_smaller_masks(const Warp& warp, int self, uint32_t mask, device::Site site) {
  for_lanes(warp.waiting, [&](int lane) {
    const Lane& other = lanes_[(self & ~(kLanes - 1)) + lane];
    if ((other.mask >> self % kLanes & 1) == 0) return;
    fail_collective(self, mask, site, static_cast<uint32_t>(lane), other.mask, other.site);
  });
}

// After a switch: whether this lane was woken because another lane of its warp returned.
inline bool Execution::must_retry(Warp& warp, int self) {
  const uint32_t bit = 1u << self % kLanes;
  if ((warp.retries & bit) == 0) return false;
  warp.retries &= ~bit;
  return true;
}

void Execution::sync_warp(uint32_t mask, device::Site site) {
  const int self = running_;
  Warp& warp = warps_[self / kLanes];
  if (!enter_whole_warp(warp, self, device::Collective::kSync, mask, 0, site)) {
    collective(device::Collective::kSync, mask, 0, 0, kLanes, site);
    return;
  }
  switch_to_next(self);
  if (must_retry(warp, self)) collective(device::Collective::kSync, mask, 0, 0, kLanes, site);
}

uint64_t Execution::combine(device::Collective kind, uint32_t mask, uint64_t value, device::Site site) {
  const int self = running_;
  Warp& warp = warps_[self / kLanes];
  if (!enter_whole_warp(warp, self, kind, mask, value, site)) return collective(kind, mask, value, 0, kLanes, site);
  switch_to_next(self);
  return must_retry(warp, self) ? collective(kind, mask, value, 0, kLanes, site) : warp.result;
}

uint64_t Execution::exchange(device::Collective kind, uint32_t mask, uint64_t value, uint32_t argument, int width,
                             device::Site site) {
  const int self = running_;
  const int base = self & ~(kLanes - 1);
  Warp& warp = warps_[self / kLanes];
  const uint64_t* const values = &values_[warp.side][base];
  if (!enter_whole_warp(warp, self, kind, mask, value, site)) return collective(kind, mask, value, argument, width, site);
  switch_to_next(self);
  if (must_retry(warp, self)) return collective(kind, mask, value, argument, width, site);
  if (kind == device::Collective::kMatchAny) {
    uint64_t equal = 0;
    for_lanes(warp.present, [&](int lane) { equal |= static_cast<uint64_t>(values[lane] == value) << lane; });
    return equal;
  }
  const int source = source_lane(kind, self - base, argument, width);
  if (source < 0) return value;
  return (warp.present >> source & 1) != 0 ? values[source] : undefined_value();
}

// ---- primitives of some lanes ------------------------------------------------------------------------------------------

uint64_t Execution::collective(device::Collective kind, uint32_t mask, uint64_t value, uint32_t argument, int width,
                               device::Site site) {
  const int self = running_;
  Warp& warp = warps_[self / kLanes];
  Lane& lane = lanes_[self];
  const uint32_t bit = 1u << self % kLanes;
  lane.kind = kind;
  lane.site = site;
  lane.mask = mask;
  lane.argument = argument;
  lane.width = width;
  lane.value = value;
  if (check_divergence_) check_collective(warp, self);
  warp.waiting |= bit;
  const uint32_t all = (mask & warp.present & ~warp.returned) | bit;
  if ((warp.waiting & all) == all) complete_collective(warp, self & ~(kLanes - 1), all);
  switch_to_next(self);
  return lane.result;
}

void Execution::complete_collective(Warp& warp, int base, uint32_t lanes) {
  using device::Collective;
  Lane* const threads = lanes_ + base;
  const Collective kind = threads[lowest(lanes)].kind;
  uint64_t common = 0;
  switch (kind) {
    case Collective::kSync:
      break;
    case Collective::kShuffle:
    case Collective::kShuffleUp:
    case Collective::kShuffleDown:
    case Collective::kShuffleXor:
      for_lanes(lanes, [&](int lane) {
        Lane& t = threads[lane];
        const int source = source_lane(kind, lane, t.argument, t.width);
        const bool there = source >= 0 && (lanes >> source & 1) != 0;
        t.result = source < 0 ? t.value : there ? threads[source].value : undefined_value();
      });
      break;
    case Collective::kMatchAny:
      for_lanes(lanes, [&](int lane) {
        uint64_t equal = 0;
        for_lanes(lanes, [&](int other) {
          equal |= static_cast<uint64_t>(threads[other].value == threads[lane].value) << other;
        });
        threads[lane].result = equal;
      });
      break;
    case Collective::kBallot:
      for_lanes(lanes, [&](int lane) { common |= threads[lane].value << lane; });
      for_lanes(lanes, [&](int lane) { threads[lane].result = common; });
      break;
    default: {
      uint64_t values[kLanes] = {};
      int count = 0;
      for_lanes(lanes, [&](int lane) { values[count++] = threads[lane].value; });
      common = combined(kind, values, count);
      for_lanes(lanes, [&](int lane) { threads[lane].result = common; });
    }
  }
  ++counters.collectives;
  warp.waiting &= ~lanes;
  if (kind == Collective::kSync || shuffles_order_memory_) order_lanes(warp, lanes);
  if (config_->order == Order::kBackward) {
    for (int lane = kLanes - 1; lane >= 0; --lane) {
      if ((lanes >> lane & 1) != 0) make_ready(base + lane);
    }
  } else {
    for_lanes(lanes, [&](int lane) { make_ready(base + lane); });
  }
}

void Execution::order_lanes(Warp& warp, uint32_t lanes) {
  if (warp.all_seen == kBlind) return;
  const uint32_t now = ++warp.syncs;
  if (now > kMaxStamp / 2) stamps_are_high_ = true;
  if (now == kMaxStamp) {
    // No stamps are left. A warp that is a block has as good as a barrier; of another one, nothing more is said until there
    // is a barrier.
    if (count_ <= kLanes && lanes == warp.present) {
      ++epoch_;
      restart_stamps();
    } else {
      warp.all_seen = kBlind;
      warp.partial = false;
    }
    return;
  }
  if (lanes == warp.present) {
    warp.all_seen = now;
    warp.partial = false;
    return;
  }
  if (!warp.partial) {
    for (auto& row : warp.seen) std::fill(std::begin(row), std::end(row), warp.all_seen);
    warp.partial = true;
  }
  uint32_t joint[kLanes] = {};
  for_lanes(lanes, [&](int lane) {
    for (int t = 0; t < kLanes; ++t) joint[t] = std::max(joint[t], warp.seen[lane][t]);
  });
  for_lanes(lanes, [&](int lane) { joint[lane] = now; });
  for_lanes(lanes, [&](int lane) { std::copy(std::begin(joint), std::end(joint), warp.seen[lane]); });
}

void Execution::fail(const Fault& fault) {
  fault_ = fault;
  switch_context(&contexts_[running_], &caller_, true);
  __builtin_unreachable();
}

void Execution::hang() {
  Fault fault;
  fault.kind = FaultKind::kHang;
  fault.mine.thread = running_;
  fault.mine.block = block_number_;
  fail(fault);
}

int64_t Execution::block_of_epoch(uint32_t epoch) const {
  const auto after = std::upper_bound(epochs_.begin(), epochs_.end(), epoch);
  return after == epochs_.begin() ? -1 : blocks_[static_cast<size_t>(after - epochs_.begin()) - 1];
}

uint32_t Execution::active_mask() const {
  const Warp& warp = warp_of(running_);
  return warp.present & ~warp.returned;
}

std::string Execution::describe_thread(int thread) const {
  const uint3 at = coordinates(thread, launch_->block);
  return "thread (" + std::to_string(at.x) + "," + std::to_string(at.y) + "," + std::to_string(at.z) + ")";
}

std::string Execution::describe_block(int64_t block) const {
  const uint3 at = coordinates(block, launch_->grid);
  return "block (" + std::to_string(at.x) + "," + std::to_string(at.y) + "," + std::to_string(at.z) + ")";
}

namespace device {

uint3 thread_index() noexcept { return execution.running() ? execution.thread_index() : uint3{0, 0, 0}; }
uint3 block_index() noexcept { return execution.block_index(); }
uint3 block_size() noexcept { return execution.running() ? static_cast<uint3>(execution.launch().block) : uint3{1, 1, 1}; }
uint3 grid_size() noexcept { return execution.running() ? static_cast<uint3>(execution.launch().grid) : uint3{1, 1, 1}; }
unsigned char* dynamic_shared() noexcept { return execution.shared(); }

void barrier(Site site) noexcept { execution.barrier(site); }

int barrier(BarrierVote vote, int predicate, Site site) noexcept { return execution.barrier(vote, predicate, site); }

void sync_warp(uint32_t mask, Site site) noexcept { execution.sync_warp(mask, site); }

uint64_t combine(Collective kind, uint32_t mask, uint64_t value, Site site) noexcept {
  return execution.combine(kind, mask, value, site);
}

uint64_t exchange(Collective kind, uint32_t mask, uint64_t value, uint32_t argument, int width, Site site) noexcept {
  return execution.exchange(kind, mask, value, argument, width, site);
}

uint32_t active_mask() noexcept { return execution.active_mask(); }

int64_t clock_ticks() noexcept {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void trap(Site site) noexcept {
  Fault fault;
  fault.kind = FaultKind::kTrap;
  fault.mine.thread = execution.current();
  fault.mine.block = execution.block_number();
  fault.site = site;
  execution.fail(fault);
}

}  // namespace device
}  // namespace hostlayer
