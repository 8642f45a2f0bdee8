// Executes PTX, a block after another, a warp of the block after another between barriers. Lanes of a warp that stand at the
// same instruction take it together; of lanes that have parted, those that are furthest behind go first, so that they meet
// again where the compiler has put the end of a branch.
//
// Cycles: within a basic block an instruction starts when its operands are there, in any order, since ptxas reorders; a block
// begins when the one before it has been issued and its branch is known. Warps of one launch do not disturb each other here;
// who uses the numbers adds what sharing a multiprocessor costs.
#include "ptx.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <type_traits>

#include "ptx_code.h"
#include "world.h"

namespace hostlayer {
namespace {

constexpr uint32_t kAll = 0xffffffffu;
constexpr uint64_t kSectorBytes = 32;
constexpr int kBanks = 32;

// What an instruction takes of a multiprocessor, in instructions of the machine's own: those of the integer units, of the
// multipliers, of memory and exchange between lanes, and all that are issued. And the cycles until its result can be used.
// Estimates, since the machine's own code cannot be read here: 64-bit words are pairs, and divisions are sequences.
struct Cost {
  int integer = 0;
  int multiply = 0;
  int memory = 0;
  int issue = 0;
  int latency = 0;
};

constexpr int kArithmeticLatency = 5;
constexpr int kSharedLatency = 30;
constexpr int kFirstLevelLatency = 40;
constexpr int kGlobalLatency = 260;  // from the second-level cache
constexpr int kAtomicLatency = 60;
constexpr int kExchangeLatency = 25;
constexpr int kBarrierLatency = 20;
constexpr int kBranchLatency = 10;

Cost integer(int count) { return {count, 0, 0, count, kArithmeticLatency * count}; }
Cost multiply(int count, int more_integer = 0) {
  return {more_integer, count, 0, count + more_integer, kArithmeticLatency * (count + more_integer)};
}
Cost memory(int latency) { return {0, 0, 1, 1, latency}; }

Cost cost_of(const PtxInstruction& i) {
  const bool wide = i.type.bits == 64;
  const bool global = i.space != PtxSpace::kShared;
  switch (i.op) {
    case PtxOp::kAdd:
    case PtxOp::kSub:
    case PtxOp::kAnd:
    case PtxOp::kOr:
    case PtxOp::kXor:
    case PtxOp::kNeg:
    case PtxOp::kNot:
    case PtxOp::kSelp:
    case PtxOp::kSetp:
      return integer(wide ? 2 : 1);
    case PtxOp::kMin:
    case PtxOp::kMax:
      return integer(wide ? 4 : 1);
    case PtxOp::kShl:
    case PtxOp::kShr:
      return integer(wide ? 2 : 1);
    case PtxOp::kPermute:
      return integer(1);
    case PtxOp::kBfi:
    case PtxOp::kBfe:
      return integer(wide ? 4 : 2);
    case PtxOp::kReverse:
    case PtxOp::kLeadingZeros:
    case PtxOp::kFindTop:
    case PtxOp::kPopulation:
      return integer(wide ? 8 : 4);  // a quarter of the usual rate
    case PtxOp::kMul:
    case PtxOp::kMad:
    case PtxOp::kMulHigh:
      return wide ? multiply(3, 1) : multiply(i.op == PtxOp::kMulHigh ? 2 : 1);
    case PtxOp::kMulWide:
    case PtxOp::kMadWide:
      return i.type.bits == 64 ? multiply(8, 4) : multiply(2);
    case PtxOp::kDiv:
    case PtxOp::kRem:
      return wide ? multiply(40, 40) : multiply(8, 10);
    case PtxOp::kMov:
      return integer(1);
    case PtxOp::kCvt:
      return integer(i.bits == 64 && i.from.is_signed ? 1 : i.type.bits < 32 ? 1 : 0);
    case PtxOp::kPack:
    case PtxOp::kUnpack:
    case PtxOp::kMovPred:
    case PtxOp::kToShared:
    case PtxOp::kFromShared:
      return integer(0);
    case PtxOp::kNotPred:
    case PtxOp::kAndPred:
    case PtxOp::kOrPred:
    case PtxOp::kXorPred:
      return integer(1);
    case PtxOp::kLoadParam:
      return {0, 0, 0, 1, kSharedLatency};
    case PtxOp::kLoad:
      return memory(global ? kGlobalLatency : kSharedLatency);
    case PtxOp::kStore:
      return memory(0);
    case PtxOp::kAtomicAdd:
    case PtxOp::kAtomicExchange:
      return memory(global ? kGlobalLatency + kAtomicLatency : kAtomicLatency);
    case PtxOp::kBallot:
      return integer(1);
    case PtxOp::kShuffleXor:
    case PtxOp::kReduceMin:
    case PtxOp::kReduceMax:
    case PtxOp::kReduceAdd:
    case PtxOp::kReduceAnd:
    case PtxOp::kReduceOr:
      return memory(kExchangeLatency);
    case PtxOp::kSyncWarp:
      return {0, 0, 0, 1, kBranchLatency};
    case PtxOp::kBarrier:
      return {0, 0, 0, 1, kBarrierLatency};
    case PtxOp::kBranch:
    case PtxOp::kReturn:
      return {0, 0, 0, 1, kBranchLatency};
  }
  return {};
}

// Of one kernel, over all its launches.
struct Counts {
  int64_t launches = 0;
  int64_t blocks = 0;
  int64_t threads = 0;
  int64_t shared_bytes = 0;           // of a block, the most that a launch asked for
  std::vector<int64_t> executed;      // [code]: by a warp, however many of its lanes
  std::vector<int64_t> lanes;         // [code]: the lanes that took part
  std::vector<int64_t> spent;         // [code]: cycles of warps in the basic block that begins here, waiting not counted
  int64_t shared_wavefronts = 0;      // passes of accesses to shared memory: more than one where banks conflict
  int64_t global_sectors = 0;         // of 32 bytes, distinct within an access
  int64_t cycles = 0;                 // summed over blocks, each alone on its multiprocessor
  int64_t most_cycles = 0;            // of a block
};

struct Warp32 {
  std::vector<uint64_t> registers;  // [registers][kLanes]
  std::vector<uint32_t> predicates;  // a bit per lane
  int32_t at[kLanes] = {};
  uint32_t alive = 0;
  uint32_t at_barrier = 0;
  uint32_t in_collective = 0;
  // Cycles:
  std::vector<int64_t> register_ready, predicate_ready;
  int64_t block_start = 0;   // of the basic block
  int64_t block_issued = 0;
  int64_t block_end = 0;     // not before all of it has been issued and its branch is known
  size_t block_at = 0;
};

template <class T>
T divide(T a, T b, bool remainder) {
  if (b == 0) return static_cast<T>(-1);
  if (std::is_signed<T>::value && a == std::numeric_limits<T>::min() && b == static_cast<T>(-1)) return remainder ? 0 : a;
  return remainder ? static_cast<T>(a % b) : static_cast<T>(a / b);
}

uint64_t mask_of(int bits) { return bits >= 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1; }

int64_t sign_extended(uint64_t value, int bits) {
  return static_cast<int64_t>(value << (64 - bits)) >> (64 - bits);
}

class Finding {
 public:
  Finding(cudaError_t e, std::string t) : error(e), text(std::move(t)) {}
  cudaError_t error;
  std::string text;
};

using Globals = std::vector<std::unique_ptr<std::vector<unsigned char>>>;

class Block {
 public:
  Block(const PtxKernel& kernel, const Globals& globals, const std::vector<Cost>& costs, const Launch& launch, Counts* counts)
      : k_(kernel), globals_(globals), costs_(costs), launch_(launch), counts_(*counts) {
    threads_ = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
    warps_.resize(static_cast<size_t>((threads_ + kLanes - 1) / kLanes));
    for (Warp32& w : warps_) {
      w.registers.resize(static_cast<size_t>(k_.registers) * kLanes);
      w.predicates.resize(static_cast<size_t>(k_.predicates));
      for (const PtxConstant& c : k_.constants) std::fill_n(&w.registers[static_cast<size_t>(c.reg) * kLanes], kLanes, c.value);
    }
  }

  void run(uint3 index, unsigned char* shared) {
    index_ = index;
    shared_ = shared;
    for (size_t w = 0; w < warps_.size(); ++w) begin_warp(static_cast<int>(w));
    for (;;) {
      for (Warp32& w : warps_) run_warp(w);
      if (!release_barrier()) break;
    }
    int64_t end = 0;
    for (const Warp32& w : warps_) end = std::max(end, w.block_start);
    ++counts_.blocks;
    counts_.threads += threads_;
    counts_.cycles += end;
    counts_.most_cycles = std::max(counts_.most_cycles, end);
  }

 private:
  void begin_warp(int number) {
    Warp32& w = warps_[static_cast<size_t>(number)];
    const int lanes = std::min(kLanes, threads_ - number * kLanes);
    w.alive = lanes == kLanes ? kAll : (1u << lanes) - 1;
    w.at_barrier = w.in_collective = 0;
    std::fill_n(w.at, kLanes, 0);
    w.register_ready.assign(static_cast<size_t>(k_.registers), 0);
    w.predicate_ready.assign(static_cast<size_t>(k_.predicates), 0);
    w.block_start = w.block_issued = w.block_end = 0;
    w.block_at = 0;
    const dim3 size = launch_.block;
    for (const PtxSpecialRegister& s : k_.specials) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const unsigned thread = static_cast<unsigned>(number * kLanes + lane);
        const uint3 at{thread % size.x, thread / size.x % size.y, thread / size.x / size.y};
        const uint3 of[] = {at, size, index_, launch_.grid};
        const uint3 v = s.what == PtxSpecial::kLane ? uint3{static_cast<unsigned>(lane), 0, 0} : of[static_cast<int>(s.what)];
        lane_of(w, s.reg)[lane] = s.dimension == 0 ? v.x : s.dimension == 1 ? v.y : v.z;
      }
    }
  }

  // False where no thread waits: all have returned.
  bool release_barrier() {
    int64_t last = 0;
    bool waits = false;
    for (const Warp32& w : warps_) {
      if (w.alive == 0) continue;
      if (w.at_barrier != w.alive) throw Finding(cudaErrorLaunchFailure, "hang: some lanes of a warp wait, others cannot go on");
      waits = true;
      last = std::max(last, w.block_start);
    }
    for (Warp32& w : warps_) {
      if (w.alive != 0) w.block_start = last + kBarrierLatency;
      w.at_barrier = 0;
    }
    return waits;
  }

  // Runs the lanes until all wait for the block or have returned.
  void run_warp(Warp32& w) {
    for (;;) {
      const uint32_t able = w.alive & ~w.at_barrier & ~w.in_collective;
      if (able == 0) {
        if (w.in_collective != 0) throw Finding(cudaErrorLaunchFailure, "hang: lanes wait for lanes that do not come");
        return;
      }
      int32_t at = std::numeric_limits<int32_t>::max();
      for_lanes(able, [&](int lane) { at = std::min(at, w.at[lane]); });
      uint32_t active = 0;
      int32_t next = std::numeric_limits<int32_t>::max();
      for_lanes(w.alive & ~w.at_barrier, [&](int lane) {
        if (w.at[lane] == at) {
          active |= 1u << lane;
        } else {
          next = std::min(next, w.at[lane]);
        }
      });
      w.in_collective &= ~active;
      run_together(w, active, at, next);
    }
  }

  // Runs lanes that stand together from `at` on, until a branch, a wait, or the place `next` where others stand.
  void run_together(Warp32& w, uint32_t active, int32_t at, int32_t next) {
    for (;; ++at) {
      const PtxInstruction& i = k_.code[static_cast<size_t>(at)];
      if (k_.starts_block[static_cast<size_t>(at)]) {
        begin_basic_block(w);
        w.block_at = static_cast<size_t>(at);
      }
      uint32_t doing = active;
      if (i.guard >= 0) {
        const uint32_t p = w.predicates[static_cast<size_t>(i.guard)];
        doing &= i.guard_negated ? ~p : p;
      }
      if (needs_lanes(i, w, doing)) {
        w.in_collective |= active;
        for_lanes(active, [&](int lane) { w.at[lane] = at; });
        return;
      }
      count(w, i, at, doing);
      if (i.op == PtxOp::kBranch) {
        for_lanes(active, [&](int lane) { w.at[lane] = (doing >> lane & 1) != 0 ? i.target : at + 1; });
        return;
      }
      if (i.op == PtxOp::kReturn) {
        w.alive &= ~doing;
        begin_basic_block(w);
        for_lanes(active & ~doing, [&](int lane) { w.at[lane] = at + 1; });
        return;
      }
      if (i.op == PtxOp::kBarrier) {
        begin_basic_block(w);
        w.at_barrier |= doing;
        for_lanes(active, [&](int lane) { w.at[lane] = at + 1; });
        return;
      }
      if (doing != 0) execute(w, i, doing);
      if (at + 1 >= next) {
        for_lanes(active, [&](int lane) { w.at[lane] = at + 1; });
        return;
      }
    }
  }

  // Whether lanes that this instruction exchanges with are not here yet.
  static bool needs_lanes(const PtxInstruction& i, Warp32& w, uint32_t doing) {
    switch (i.op) {
      case PtxOp::kShuffleXor:
      case PtxOp::kBallot:
      case PtxOp::kReduceMin:
      case PtxOp::kReduceMax:
      case PtxOp::kReduceAdd:
      case PtxOp::kReduceAnd:
      case PtxOp::kReduceOr:
      case PtxOp::kSyncWarp: {
        if (doing == 0) return false;
        const int first = __builtin_ctz(doing);
        const uint32_t wanted = static_cast<uint32_t>(lane_of(w, i.in[3])[first]) & w.alive;
        return (wanted & ~doing) != 0;
      }
      default:
        return false;
    }
  }

  // By where the load is from, not by what its opcode leaves open. The program's own small tables stay in the first-level cache.
  int64_t load_latency(Warp32& w, const PtxInstruction& i, uint32_t doing) const {
    const uintptr_t at = lane_of(w, i.in[0])[__builtin_ctz(doing)] + static_cast<uint64_t>(i.offset);
    if (i.space == PtxSpace::kShared || world.memory.in_shared(at)) return kSharedLatency;
    return is_global(at, 1) ? kFirstLevelLatency : kGlobalLatency;
  }

  static bool reads_predicate(const PtxInstruction& i) { return i.op == PtxOp::kSelp || i.op == PtxOp::kBallot; }

  // ---- counting

  void begin_basic_block(Warp32& w) {
    const int64_t next = std::max(w.block_start + w.block_issued, w.block_end);
    counts_.spent[w.block_at] += next - w.block_start;
    w.block_start = next;
    w.block_issued = 0;
  }

  void count(Warp32& w, const PtxInstruction& i, int32_t at, uint32_t doing) {
    const Cost& cost = costs_[static_cast<size_t>(at)];
    ++counts_.executed[static_cast<size_t>(at)];
    counts_.lanes[static_cast<size_t>(at)] += __builtin_popcount(doing);
    int64_t start = w.block_start;
    for (const int32_t r : i.in) {
      if (r >= 0) start = std::max(start, w.register_ready[static_cast<size_t>(r)]);
    }
    if (i.guard >= 0) start = std::max(start, w.predicate_ready[static_cast<size_t>(i.guard)]);
    for (const int16_t p : i.other_predicates) {
      if (p >= 0) start = std::max(start, w.predicate_ready[static_cast<size_t>(p)]);
    }
    if (reads_predicate(i)) start = std::max(start, w.predicate_ready[static_cast<size_t>(i.predicate)]);
    const int64_t done = start + (i.op == PtxOp::kLoad && doing != 0 ? load_latency(w, i, doing) : cost.latency);
    w.block_issued += cost.issue;
    for (const int32_t r : i.out) {
      if (r >= 0) w.register_ready[static_cast<size_t>(r)] = done;
    }
    if (i.predicate >= 0 && !reads_predicate(i)) w.predicate_ready[static_cast<size_t>(i.predicate)] = done;
    const bool decides = (i.op == PtxOp::kBranch || i.op == PtxOp::kReturn) && i.guard >= 0;
    if (cost.issue > 0) w.block_end = std::max(w.block_end, decides ? done : start + 1);
  }

  // ---- executing

  static uint64_t* lane_of(Warp32& w, int32_t reg) { return &w.registers[static_cast<size_t>(reg) * kLanes]; }

  template <class F>
  static void for_lanes(uint32_t lanes, F f) {
    for (; lanes != 0; lanes &= lanes - 1) f(__builtin_ctz(lanes));
  }

  // out = f(a, b, c), all of type T, in lanes `doing`.
  template <class T, class F>
  void apply(Warp32& w, const PtxInstruction& i, uint32_t doing, F f) {
    uint64_t* const out = lane_of(w, i.out[0]);
    const uint64_t* const a = lane_of(w, i.in[0]);
    const uint64_t* const b = lane_of(w, i.in[1] >= 0 ? i.in[1] : i.in[0]);
    const uint64_t* const c = lane_of(w, i.in[2] >= 0 ? i.in[2] : i.in[0]);
    const uint64_t mask = mask_of(i.bits);
    const auto one = [&](int lane) {
      out[lane] = static_cast<uint64_t>(f(static_cast<T>(a[lane]), static_cast<T>(b[lane]), static_cast<T>(c[lane]))) & mask;
    };
    if (doing == kAll) {
      for (int lane = 0; lane < kLanes; ++lane) one(lane);
    } else {
      for_lanes(doing, one);
    }
  }

  // Calls f(T{}) with the type of the operation.
  template <class F>
  static void with_type(PtxType type, F f) {
    switch (type.bits * 2 + (type.is_signed ? 1 : 0)) {
      case 16: return f(uint8_t{});
      case 17: return f(int8_t{});
      case 32: return f(uint16_t{});
      case 33: return f(int16_t{});
      case 64: return f(uint32_t{});
      case 65: return f(int32_t{});
      case 128: return f(uint64_t{});
      default: return f(int64_t{});
    }
  }

  void execute(Warp32& w, const PtxInstruction& i, uint32_t doing) {
    switch (i.op) {
      case PtxOp::kLoad:
      case PtxOp::kStore:
      case PtxOp::kAtomicAdd:
      case PtxOp::kAtomicExchange:
        access(w, i, doing);
        return;
      case PtxOp::kLoadParam:
        load_parameter(w, i, doing);
        return;
      case PtxOp::kShuffleXor:
        shuffle(w, i, doing);
        return;
      case PtxOp::kBallot: {
        const uint32_t votes = w.predicates[static_cast<size_t>(i.predicate)] & doing;
        uint64_t* const out = lane_of(w, i.out[0]);
        for_lanes(doing, [&](int lane) { out[lane] = votes; });
        return;
      }
      case PtxOp::kReduceMin:
      case PtxOp::kReduceMax:
      case PtxOp::kReduceAdd:
      case PtxOp::kReduceAnd:
      case PtxOp::kReduceOr:
        reduce(w, i, doing);
        return;
      case PtxOp::kSyncWarp:
        return;
      case PtxOp::kMovPred:
      case PtxOp::kNotPred:
      case PtxOp::kAndPred:
      case PtxOp::kOrPred:
      case PtxOp::kXorPred:
      case PtxOp::kSetp:
        set_predicate(w, i, doing);
        return;
      case PtxOp::kSelp: {
        const uint32_t p = w.predicates[static_cast<size_t>(i.predicate)];
        uint64_t* const out = lane_of(w, i.out[0]);
        const uint64_t *const a = lane_of(w, i.in[0]), *const b = lane_of(w, i.in[1]);
        const uint64_t mask = mask_of(i.bits);
        for_lanes(doing, [&](int lane) { out[lane] = ((p >> lane & 1) != 0 ? a[lane] : b[lane]) & mask; });
        return;
      }
      case PtxOp::kPack: {
        uint64_t* const out = lane_of(w, i.out[0]);
        const uint64_t *const low = lane_of(w, i.in[0]), *const high = lane_of(w, i.in[1]);
        const int half = i.bits / 2;
        for_lanes(doing, [&](int lane) { out[lane] = (low[lane] & mask_of(half)) | high[lane] << half; });
        return;
      }
      case PtxOp::kUnpack: {
        uint64_t *const low = lane_of(w, i.out[0]), *const high = lane_of(w, i.out[1]);
        const uint64_t* const in = lane_of(w, i.in[0]);
        for_lanes(doing, [&](int lane) {
          const uint64_t whole = in[lane];
          low[lane] = whole & mask_of(i.bits);
          high[lane] = whole >> i.bits & mask_of(i.bits);
        });
        return;
      }
      default:
        compute(w, i, doing);
    }
  }

  void compute(Warp32& w, const PtxInstruction& i, uint32_t doing) {
    const uintptr_t shared = reinterpret_cast<uintptr_t>(shared_);
    switch (i.op) {
      case PtxOp::kCvt:
        with_type(i.from, [&](auto from) {
          using From = decltype(from);
          apply<From>(w, i, doing, [&](From a, From, From) {
            return static_cast<uint64_t>(sign_extended(static_cast<uint64_t>(a) & mask_of(i.type.bits),
                                                       i.type.is_signed ? i.type.bits : 64));
          });
        });
        return;
      case PtxOp::kToShared:
        apply<uint64_t>(w, i, doing, [=](uint64_t a, uint64_t, uint64_t) { return a - shared; });
        return;
      case PtxOp::kFromShared:
        apply<uint64_t>(w, i, doing, [=](uint64_t a, uint64_t, uint64_t) { return a + shared; });
        return;
      case PtxOp::kMulWide:
      case PtxOp::kMadWide:
        if (i.type.bits != 32 && i.type.bits != 16) throw Finding(cudaErrorInvalidKernelImage, "a wide product of 64 bits");
        apply<uint64_t>(w, i, doing, [&](uint64_t a, uint64_t b, uint64_t c) {
          const auto wide = [&](uint64_t x) {
            return i.type.is_signed ? static_cast<uint64_t>(sign_extended(x, i.type.bits)) : x & mask_of(i.type.bits);
          };
          return wide(a) * wide(b) + (i.op == PtxOp::kMadWide ? c : 0);
        });
        return;
      default:
        with_type(i.type, [&](auto type) { arithmetic<decltype(type)>(w, i, doing); });
    }
  }

  template <class T>
  void arithmetic(Warp32& w, const PtxInstruction& i, uint32_t doing) {
    using U = std::make_unsigned_t<T>;
    constexpr int kBits = 8 * sizeof(T);
    const auto unsigned_of = [](T x) { return static_cast<uint64_t>(static_cast<U>(x)); };
    switch (i.op) {
      case PtxOp::kMov:
        return apply<T>(w, i, doing, [](T a, T, T) { return a; });
      case PtxOp::kAdd:
        return apply<U>(w, i, doing, [](U a, U b, U) { return static_cast<U>(a + b); });
      case PtxOp::kSub:
        return apply<U>(w, i, doing, [](U a, U b, U) { return static_cast<U>(a - b); });
      case PtxOp::kMul:
        return apply<uint64_t>(w, i, doing, [](uint64_t a, uint64_t b, uint64_t) { return static_cast<U>(a * b); });
      case PtxOp::kMad:
        return apply<uint64_t>(w, i, doing, [](uint64_t a, uint64_t b, uint64_t c) { return static_cast<U>(a * b + c); });
      case PtxOp::kMulHigh:
        return apply<T>(w, i, doing, [](T a, T b, T) {
          __extension__ using Wide = std::conditional_t<std::is_signed<T>::value, __int128, unsigned __int128>;
          return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b) >> kBits);
        });
      case PtxOp::kDiv:
        return apply<T>(w, i, doing, [](T a, T b, T) { return divide(a, b, false); });
      case PtxOp::kRem:
        return apply<T>(w, i, doing, [](T a, T b, T) { return divide(a, b, true); });
      case PtxOp::kMin:
        return apply<T>(w, i, doing, [](T a, T b, T) { return std::min(a, b); });
      case PtxOp::kMax:
        return apply<T>(w, i, doing, [](T a, T b, T) { return std::max(a, b); });
      case PtxOp::kNeg:
        return apply<U>(w, i, doing, [](U a, U, U) { return static_cast<U>(0 - a); });
      case PtxOp::kNot:
        return apply<U>(w, i, doing, [](U a, U, U) { return static_cast<U>(~a); });
      case PtxOp::kAnd:
        return apply<U>(w, i, doing, [](U a, U b, U) { return static_cast<U>(a & b); });
      case PtxOp::kOr:
        return apply<U>(w, i, doing, [](U a, U b, U) { return static_cast<U>(a | b); });
      case PtxOp::kXor:
        return apply<U>(w, i, doing, [](U a, U b, U) { return static_cast<U>(a ^ b); });
      case PtxOp::kShl:  // shifts beyond the width give what shifting bit by bit would
        return apply<uint64_t>(w, i, doing, [=](uint64_t a, uint64_t b, uint64_t) {
          const uint32_t by = static_cast<uint32_t>(b);
          return by >= kBits ? U{0} : static_cast<U>(a << by);
        });
      case PtxOp::kShr:
        return apply<uint64_t>(w, i, doing, [=](uint64_t a, uint64_t b, uint64_t) {
          const uint32_t by = std::min<uint32_t>(static_cast<uint32_t>(b), kBits - 1);
          const bool out = static_cast<uint32_t>(b) >= kBits && !std::is_signed<T>::value;
          return out ? T{0} : static_cast<T>(static_cast<T>(a) >> by);
        });
      case PtxOp::kReverse:
        return apply<U>(w, i, doing, [](U a, U, U) {
          U reversed = 0;
          for (int bit = 0; bit < kBits; ++bit) reversed = static_cast<U>(reversed << 1 | (a >> bit & 1));
          return reversed;
        });
      case PtxOp::kLeadingZeros:
      case PtxOp::kFindTop: {
        const bool from_top = i.op == PtxOp::kLeadingZeros;
        const uint32_t of_nothing = i.find ? kAll : static_cast<uint32_t>(kBits);
        return apply<U>(w, i, doing, [=](U a, U, U) {
          if (a == 0) return of_nothing;
          const uint32_t top = 63u - static_cast<uint32_t>(__builtin_clzll(a));
          return from_top ? static_cast<uint32_t>(kBits) - 1 - top : top;
        });
      }
      case PtxOp::kPopulation:
        return apply<U>(w, i, doing, [](U a, U, U) { return static_cast<uint32_t>(__builtin_popcountll(a)); });
      case PtxOp::kBfe:
        return apply<uint64_t>(w, i, doing, [=](uint64_t a, uint64_t at, uint64_t length) {
          const int from = std::min<int>(static_cast<int>(at & 0xff), kBits);
          const int bits = std::min<int>(static_cast<int>(length & 0xff), kBits - from);
          const uint64_t field = from == kBits ? 0 : (a & mask_of(kBits)) >> from & mask_of(bits);
          return unsigned_of(static_cast<T>(std::is_signed<T>::value && bits > 0 ? sign_extended(field, bits) : static_cast<int64_t>(field)));
        });
      case PtxOp::kPermute:  // four bytes out of the eight of two words, each by a digit; its top bit asks for the sign alone
        return apply<uint64_t>(w, i, doing, [](uint64_t a, uint64_t b, uint64_t digits) {
          const uint64_t bytes = (b & 0xffffffffu) << 32 | (a & 0xffffffffu);
          uint32_t result = 0;
          for (int n = 0; n < 4; ++n) {
            const uint32_t digit = static_cast<uint32_t>(digits >> 4 * n) & 15;
            const uint32_t byte = static_cast<uint32_t>(bytes >> 8 * (digit & 7)) & 255;
            result |= ((digit & 8) != 0 ? ((byte & 128) != 0 ? 255u : 0u) : byte) << 8 * n;
          }
          return result;
        });
      case PtxOp::kBfi: {
        const uint64_t* const length = lane_of(w, i.in[3]);
        const uint64_t bits = length[__builtin_ctz(doing)] & 0xff;  // the compiler knows positions and lengths
        return apply<uint64_t>(w, i, doing, [=](uint64_t a, uint64_t b, uint64_t at) {
          const uint64_t field = mask_of(static_cast<int>(bits)) << (at & 0xff);
          return unsigned_of(static_cast<T>((b & ~field) | (a << (at & 0xff) & field)));
        });
      }
      default:
        throw Finding(cudaErrorInvalidKernelImage, "an instruction that is not known, line " + std::to_string(i.line));
    }
  }

  void set_predicate(Warp32& w, const PtxInstruction& i, uint32_t doing) {
    uint32_t& out = w.predicates[static_cast<size_t>(i.predicate)];
    const auto other = [&](int n) { return w.predicates[static_cast<size_t>(i.other_predicates[n])]; };
    uint32_t result = 0;
    switch (i.op) {
      case PtxOp::kMovPred:
        result = lane_of(w, i.in[0])[0] != 0 ? kAll : 0;
        break;
      case PtxOp::kNotPred:
        result = ~other(0);
        break;
      case PtxOp::kAndPred:
        result = other(0) & other(1);
        break;
      case PtxOp::kOrPred:
        result = other(0) | other(1);
        break;
      case PtxOp::kXorPred:
        result = other(0) ^ other(1);
        break;
      default:
        with_type(i.type, [&](auto type) { result = compare<decltype(type)>(w, i); });
    }
    out = (out & ~doing) | (result & doing);
  }

  template <class T>
  uint32_t compare(Warp32& w, const PtxInstruction& i) {
    const uint64_t *const a = lane_of(w, i.in[0]), *const b = lane_of(w, i.in[1]);
    const auto all = [&](auto holds) {
      uint32_t lanes = 0;
      for (int lane = 0; lane < kLanes; ++lane) {
        lanes |= static_cast<uint32_t>(holds(static_cast<T>(a[lane]), static_cast<T>(b[lane]))) << lane;
      }
      return lanes;
    };
    switch (i.compare) {
      case PtxCompare::kEqual:
        return all([](T x, T y) { return x == y; });
      case PtxCompare::kUnequal:
        return all([](T x, T y) { return x != y; });
      case PtxCompare::kLess:
        return all([](T x, T y) { return x < y; });
      case PtxCompare::kLessEqual:
        return all([](T x, T y) { return x <= y; });
      case PtxCompare::kGreater:
        return all([](T x, T y) { return x > y; });
      default:
        return all([](T x, T y) { return x >= y; });
    }
  }

  // ---- lanes together

  void shuffle(Warp32& w, const PtxInstruction& i, uint32_t doing) {
    uint64_t in[kLanes];
    std::copy_n(lane_of(w, i.in[0]), kLanes, in);
    uint64_t* const out = lane_of(w, i.out[0]);
    const uint64_t* const by = lane_of(w, i.in[1]);
    for_lanes(doing, [&](int lane) {
      const int from = lane ^ static_cast<int>(by[lane]);
      if (from < 0 || from >= kLanes || (doing >> from & 1) == 0) {
        throw Finding(cudaErrorLaunchFailure, "a shuffle reads a lane that is not there, line " + std::to_string(i.line));
      }
      out[lane] = in[from];
    });
  }

  void reduce(Warp32& w, const PtxInstruction& i, uint32_t doing) {
    const uint64_t* const in = lane_of(w, i.in[0]);
    const bool is_signed = i.type.is_signed;
    uint32_t result = static_cast<uint32_t>(in[__builtin_ctz(doing)]);
    for_lanes(doing & (doing - 1), [&](int lane) {
      const uint32_t x = static_cast<uint32_t>(in[lane]);
      const bool less = is_signed ? static_cast<int32_t>(x) < static_cast<int32_t>(result) : x < result;
      switch (i.op) {
        case PtxOp::kReduceMin: result = less ? x : result; break;
        case PtxOp::kReduceMax: result = less || x == result ? result : x; break;
        case PtxOp::kReduceAdd: result += x; break;
        case PtxOp::kReduceAnd: result &= x; break;
        default: result |= x;
      }
    });
    uint64_t* const out = lane_of(w, i.out[0]);
    for_lanes(doing, [&](int lane) { out[lane] = result; });
  }

  // ---- memory

  void load_parameter(Warp32& w, const PtxInstruction& i, uint32_t doing) {
    const size_t bytes = i.type.bits / 8;
    for_lanes(doing, [&](int lane) {
      size_t at = (i.in[0] < 0 ? 0 : lane_of(w, i.in[0])[lane]) + static_cast<size_t>(i.offset);
      for (int n = 0; n < i.count; ++n, at += bytes) {
        const size_t size = launch_.parameters.size();
        if (at > size || bytes > size - at) throw Finding(cudaErrorInvalidValue, "more parameters than the launch gave");
        uint64_t value = 0;
        std::memcpy(&value, launch_.parameters.data() + at, bytes);
        if (i.type.is_signed) value = static_cast<uint64_t>(sign_extended(value, i.type.bits)) & mask_of(i.bits);
        lane_of(w, i.out[n])[lane] = value;
      }
    });
  }

  unsigned char* checked(const PtxInstruction& i, uint64_t address, size_t bytes) {
    const uint64_t at = address + static_cast<uint64_t>(i.offset);
    const uintptr_t base = reinterpret_cast<uintptr_t>(shared_);
    const bool in_shared = i.space == PtxSpace::kShared;
    const uintptr_t absolute = in_shared ? base + static_cast<uint32_t>(at) : at;
    if (absolute % bytes != 0) throw Finding(cudaErrorMisalignedAddress, "misaligned: " + where(i, absolute, bytes));
    if (in_shared || (i.space == PtxSpace::kGeneric && world.memory.in_shared(absolute))) {
      if (absolute - base < launch_.shared_bytes && bytes <= launch_.shared_bytes - (absolute - base)) {
        return reinterpret_cast<unsigned char*>(absolute);
      }
    } else if (device_range.contains(absolute)) {
      const uint8_t state = device_range.state[device_range.word(absolute)];
      const uint8_t wanted = static_cast<uint8_t>((bytes >= kWordBytes ? kLive : mask_of(static_cast<int>(bytes)) << absolute % kWordBytes));
      if (!world.memory.in_shared(absolute) && (state & wanted) == wanted &&
          (device_range.state[device_range.word(absolute + bytes - 1)] & kLive) != 0) {
        return reinterpret_cast<unsigned char*>(absolute);
      }
    } else if (i.op == PtxOp::kLoad && i.space != PtxSpace::kShared && is_global(absolute, bytes)) {
      return reinterpret_cast<unsigned char*>(absolute);
    }
    throw Finding(cudaErrorIllegalAddress, "out of bounds: " + where(i, absolute, bytes));
  }

  std::string where(const PtxInstruction& i, uintptr_t address, size_t bytes) const {
    return std::to_string(bytes) + " bytes at PTX line " + std::to_string(i.line) + "\n  address: " + world.memory.describe(address);
  }

  bool is_global(uintptr_t address, size_t bytes) const {
    for (const auto& g : globals_) {
      const uintptr_t begin = reinterpret_cast<uintptr_t>(g->data());
      if (address - begin < g->size() && bytes <= g->size() - (address - begin)) return true;
    }
    return false;
  }

  void access(Warp32& w, const PtxInstruction& i, uint32_t doing) {
    const uint64_t* const base = lane_of(w, i.in[0]);
    const size_t bytes = i.type.bits / 8;
    unsigned char* at[kLanes] = {};
    for_lanes(doing, [&](int lane) { at[lane] = checked(i, base[lane], bytes * i.count); });
    for (int n = 0; n < i.count; ++n) {
      for_lanes(doing, [&](int lane) { access_cell(w, i, n, lane, at[lane] + static_cast<size_t>(n) * bytes, bytes); });
    }
    count_traffic(i, at, doing, bytes * i.count);
  }

  static void access_cell(Warp32& w, const PtxInstruction& i, int n, int lane, unsigned char* at, size_t bytes) {
    uint64_t cell = 0;
    if (i.op != PtxOp::kStore) std::memcpy(&cell, at, bytes);
    const uint64_t old = cell;
    if (i.op == PtxOp::kStore) cell = lane_of(w, i.in[n + 1])[lane];
    if (i.op == PtxOp::kAtomicAdd) cell += lane_of(w, i.in[1])[lane];
    if (i.op == PtxOp::kAtomicExchange) cell = lane_of(w, i.in[1])[lane];
    if (i.op != PtxOp::kLoad) std::memcpy(at, &cell, bytes);
    if (i.out[n] < 0) return;
    const uint64_t value = i.type.is_signed ? static_cast<uint64_t>(sign_extended(old, i.type.bits)) : old;
    lane_of(w, i.out[n])[lane] = value & mask_of(i.bits);
  }

  // Passes over the banks of shared memory, or sectors of the rest. Lanes that read one word are served together; an
  // atomic operation takes them one after another.
  void count_traffic(const PtxInstruction& i, unsigned char* const* at, uint32_t doing, size_t bytes) {
    const uintptr_t shared = reinterpret_cast<uintptr_t>(shared_);
    uint64_t units[kLanes * 4];
    int count = 0;
    const bool in_shared = reinterpret_cast<uintptr_t>(at[__builtin_ctz(doing)]) - shared < DeviceMemory::kSharedWindowBytes;
    const uint64_t unit = in_shared ? kWordBytes : kSectorBytes;
    for_lanes(doing, [&](int lane) {
      const uintptr_t first = reinterpret_cast<uintptr_t>(at[lane]);
      for (uint64_t u = first / unit; u <= (first + bytes - 1) / unit; ++u) units[count++] = u;
    });
    const bool atomic = i.op == PtxOp::kAtomicAdd || i.op == PtxOp::kAtomicExchange;
    std::sort(units, units + count);
    if (!atomic) count = static_cast<int>(std::unique(units, units + count) - units);
    if (!in_shared) {
      counts_.global_sectors += count;
      return;
    }
    int banks[kBanks] = {};
    int most = 0;
    for (int n = 0; n < count; ++n) most = std::max(most, ++banks[units[n] % kBanks]);
    counts_.shared_wavefronts += most;
  }

  const PtxKernel& k_;
  const Globals& globals_;
  const std::vector<Cost>& costs_;
  const Launch& launch_;
  Counts& counts_;
  int threads_ = 0;
  std::vector<Warp32> warps_;
  uint3 index_{0, 0, 0};
  unsigned char* shared_ = nullptr;
};

}  // namespace

struct PtxProgram::Impl {
  struct Entry {
    const PtxKernel* kernel = nullptr;
    std::vector<Cost> costs;  // [code]
    Counts counts;
  };
  PtxCode code;
  std::map<std::string, Entry> entries;
};

PtxProgram::PtxProgram(const std::string& text) : impl_(new Impl) {
  impl_->code = parse_ptx(text);
  for (const PtxKernel& kernel : impl_->code.kernels) {
    Impl::Entry& entry = impl_->entries[kernel.name];
    entry.kernel = &kernel;
    for (const PtxInstruction& i : kernel.code) entry.costs.push_back(cost_of(i));
    entry.counts.executed.assign(kernel.code.size(), 0);
    entry.counts.lanes.assign(kernel.code.size(), 0);
    entry.counts.spent.assign(kernel.code.size(), 0);
  }
}

PtxProgram::~PtxProgram() = default;

unsigned PtxProgram::most_threads(const std::string& kernel) const {
  const auto at = impl_->entries.find(kernel);
  return at == impl_->entries.end() ? 1024 : at->second.kernel->most_threads;
}

cudaError_t PtxProgram::run(const std::string& kernel, const Launch& launch) {
  const auto at = impl_->entries.find(kernel);
  if (at == impl_->entries.end()) {
    hostlayer::report("the PTX program has no kernel " + kernel);
    return cudaErrorInvalidDeviceFunction;
  }
  Impl::Entry& entry = at->second;
  if (launch.block.x * launch.block.y * launch.block.z > entry.kernel->most_threads) return cudaErrorInvalidValue;
  ++entry.counts.launches;
  entry.counts.shared_bytes = std::max(entry.counts.shared_bytes, static_cast<int64_t>(launch.shared_bytes));
  Block block(*entry.kernel, impl_->code.globals, entry.costs, launch, &entry.counts);
  try {
    for (unsigned z = 0; z < launch.grid.z; ++z) {
      for (unsigned y = 0; y < launch.grid.y; ++y) {
        for (unsigned x = 0; x < launch.grid.x; ++x) {
          block.run({x, y, z}, world.memory.open_shared(launch.shared_bytes, world.poison()));
        }
      }
    }
  } catch (const Finding& finding) {
    hostlayer::report(finding.text + "\n  kernel " + kernel + ", as PTX");
    return finding.error;
  }
  return cudaSuccess;
}

namespace {

// An object, field by field.
class Json {
 public:
  Json& add(const char* key, int64_t value) { return add_raw(key, std::to_string(value)); }
  Json& add_raw(const char* key, const std::string& value) {
    fields_ += (fields_.empty() ? "\"" : ", \"") + std::string(key) + "\": " + value;
    return *this;
  }
  std::string text() const { return "{" + fields_ + "}"; }

 private:
  std::string fields_;
};

template <class F>
void for_basic_blocks(const PtxKernel& kernel, F f) {
  for (size_t begin = 0; begin < kernel.code.size();) {
    size_t end = begin + 1;
    while (end < kernel.code.size() && !kernel.starts_block[end]) ++end;
    f(begin, end);
    begin = end;
  }
}

// The basic block with the most executed instructions: [begin, end).
std::pair<size_t, size_t> hottest_block(const PtxKernel& kernel, const Counts& counts) {
  std::pair<size_t, size_t> best{0, 0};
  int64_t most = -1;
  for_basic_blocks(kernel, [&](size_t begin, size_t end) {
    const int64_t worth = counts.executed[begin] * static_cast<int64_t>(end - begin);
    if (worth <= most) return;
    most = worth;
    best = {begin, end};
  });
  return best;
}

// Instructions of a stretch of code, each as often as it was executed, or once.
Json costs_of(const std::vector<Cost>& costs, size_t begin, size_t end, const std::vector<int64_t>* executed) {
  int64_t sums[4] = {};
  for (size_t n = begin; n < end; ++n) {
    const int64_t times = executed == nullptr ? 1 : (*executed)[n];
    sums[0] += times * costs[n].integer;
    sums[1] += times * costs[n].multiply;
    sums[2] += times * costs[n].memory;
    sums[3] += times * costs[n].issue;
  }
  return Json().add("integer", sums[0]).add("multiply", sums[1]).add("memory", sums[2]).add("issue", sums[3]);
}

// Of each basic block that was executed: [line, instructions, executions, lanes, cycles].
std::string profile_of(const PtxKernel& kernel, const Counts& c) {
  std::string text;
  for_basic_blocks(kernel, [&](size_t begin, size_t end) {
    if (c.executed[begin] == 0) return;
    const int64_t numbers[] = {kernel.code[begin].line, static_cast<int64_t>(end - begin), c.executed[begin], c.lanes[begin],
                               c.spent[begin]};
    text += text.empty() ? "[" : ",\n   [";
    for (const int64_t n : numbers) text += (text.back() == '[' ? "" : ", ") + std::to_string(n);
    text += "]";
  });
  return "[" + text + "]";
}

}  // namespace

std::string PtxProgram::report() const {
  std::string text;
  for (const auto& [name, entry] : impl_->entries) {
    const Counts& c = entry.counts;
    if (c.launches == 0) continue;
    const size_t length = entry.kernel->code.size();
    const auto [begin, end] = hottest_block(*entry.kernel, c);
    Json hottest;
    hottest.add("line", entry.kernel->code[begin].line).add("instructions", static_cast<int64_t>(end - begin));
    hottest.add("executions", c.executed[begin]).add("lanes", c.lanes[begin]);
    hottest.add_raw("costs", costs_of(entry.costs, begin, end, nullptr).text());
    Json kernel;
    kernel.add_raw("kernel", '"' + name + '"').add("launches", c.launches).add("blocks", c.blocks).add("threads", c.threads);
    kernel.add("sharedBytes", c.shared_bytes);
    kernel.add("sharedWavefronts", c.shared_wavefronts).add("globalSectors", c.global_sectors);
    kernel.add("cycles", c.cycles).add("mostCycles", c.most_cycles);
    kernel.add_raw("executed", costs_of(entry.costs, 0, length, &c.executed).text());
    kernel.add_raw("written", costs_of(entry.costs, 0, length, nullptr).text());
    kernel.add_raw("hottest", hottest.text());
    kernel.add_raw("profile", profile_of(*entry.kernel, c));
    text += (text.empty() ? "[\n" : ",\n") + kernel.text();
  }
  return text.empty() ? "[]\n" : text + "\n]\n";
}

}  // namespace hostlayer
