// What the layer computes: built-in variables, votes, shuffles, reductions, atomics and intrinsics against their
// definitions, and the orders in which it runs threads and blocks. The kernels of this file are not instrumented.
#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "hostlayer.h"
#include "test_machine.h"

namespace hostlayer {
namespace test {
namespace {

// Device memory that the host reads after a synchronisation.
template <class T>
class Results {
 public:
  explicit Results(size_t count) : count_(count) { REQUIRE(cudaMalloc(&at_, count * sizeof(T)) == cudaSuccess); }
  ~Results() { cudaFree(at_); }
  Results(const Results&) = delete;
  Results& operator=(const Results&) = delete;
  T* get() const { return at_; }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    REQUIRE(cudaMemcpy(values.data(), at_, count_ * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess);
    return values;
  }

 private:
  T* at_ = nullptr;
  size_t count_;
};

template <class T>
struct Same {
  using Type = T;
};

template <class... Args>
void launch(void (*kernel)(Args...), dim3 grid, dim3 block, size_t shared, typename Same<Args>::Type... args) {
  void* list[] = {static_cast<void*>(&args)..., nullptr};
  REQUIRE(cudaLaunchKernel(kernel, grid, block, list, shared, nullptr) == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
}

__global__ void write_coordinates(uint4* out) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  out[block * (blockDim.x * blockDim.y * blockDim.z) + thread] =
      make_uint4(threadIdx.x + 100 * blockIdx.x, threadIdx.y + 100 * blockIdx.y, threadIdx.z + 100 * blockIdx.z, warpSize);
}

TEST_CASE("hostlayer: every thread of every block runs once and knows where it is") {
  const dim3 grid(3, 2, 2);
  const dim3 block(5, 4, 3);
  for (const Order order : {Order::kRandom, Order::kForward, Order::kBackward}) {
    const Machine machine(5, order);
    Results<uint4> out(12 * 60);
    launch(write_coordinates, grid, block, 0, out.get());
    const std::vector<uint4> got = out.read();
    size_t i = 0;
    bool right = true;
    for (unsigned bz = 0; bz < 2; ++bz) {
      for (unsigned by = 0; by < 2; ++by) {
        for (unsigned bx = 0; bx < 3; ++bx) {
          for (unsigned z = 0; z < 3; ++z) {
            for (unsigned y = 0; y < 4; ++y) {
              for (unsigned x = 0; x < 5; ++x, ++i) {
                right &= got[i].x == x + 100 * bx && got[i].y == y + 100 * by && got[i].z == z + 100 * bz && got[i].w == 32;
              }
            }
          }
        }
      }
    }
    CHECK(right);
    CHECK(counters().blocks == 12);
    CHECK(counters().threads == 12 * 60);
  }
}

__global__ void note_order(int* next, int* order) {
  order[atomicAdd(next, 1)] = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  __syncthreads();
  order[atomicAdd(next, 1)] = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}

// [2 phases of each of 4 blocks of 40]: who came when.
std::vector<int> observed_order(uint64_t seed, Order order) {
  const Machine machine(seed, order);
  Results<int> next(1);
  Results<int> out(320);
  REQUIRE(cudaMemset(next.get(), 0, sizeof(int)) == cudaSuccess);
  launch(note_order, dim3(4), dim3(40), 0, next.get(), out.get());
  return out.read();
}

TEST_CASE("hostlayer: the fixed orders are ascending and descending, in every phase") {
  const std::vector<int> forward = observed_order(1, Order::kForward);
  const std::vector<int> backward = observed_order(1, Order::kBackward);
  for (int i = 0; i < 320; ++i) {
    const int in_phase = i % 40 + i / 80 * 40;
    CHECK(forward[static_cast<size_t>(i)] == in_phase);
    CHECK(backward[static_cast<size_t>(i)] == 159 - in_phase);
  }
}

TEST_CASE("hostlayer: a random order is another for each seed, block and phase, and the same for one seed") {
  const std::vector<int> once = observed_order(11, Order::kRandom);
  CHECK(once == observed_order(11, Order::kRandom));
  CHECK(once != observed_order(12, Order::kRandom));
  std::set<std::vector<int>> phases;
  std::set<int> blocks_in_order;
  for (int phase = 0; phase < 8; ++phase) {
    std::vector<int> threads(once.begin() + phase * 40, once.begin() + (phase + 1) * 40);
    const int block = threads[0] / 40;
    for (int& t : threads) {
      CHECK(t / 40 == block);
      t %= 40;
    }
    phases.insert(threads);
    std::sort(threads.begin(), threads.end());
    for (int t = 0; t < 40; ++t) CHECK(threads[static_cast<size_t>(t)] == t);
  }
  CHECK(phases.size() == 8);
}

TEST_CASE("hostlayer: over the seeds, any thread and any block comes first") {
  std::set<int> first_threads;
  std::set<int> first_blocks;
  for (uint64_t seed = 0; seed < 400; ++seed) {
    const int first = observed_order(seed, Order::kRandom)[0];
    first_threads.insert(first % 40);
    first_blocks.insert(first / 40);
  }
  CHECK(first_threads.size() == 40);
  CHECK(first_blocks.size() == 4);
}

__global__ void vote_in_block(int* out) {
  const int t = static_cast<int>(threadIdx.x);
  int* const mine = out + t * 6;
  mine[0] = __syncthreads_count(t % 3 == 0);
  mine[1] = __syncthreads_and(t >= 0);
  mine[2] = __syncthreads_and(t != 17);
  mine[3] = __syncthreads_or(t == 17);
  mine[4] = __syncthreads_or(t < 0);
  mine[5] = __syncthreads_count(1);
}

TEST_CASE("hostlayer: votes of a block") {
  for (const int threads : {1, 31, 70}) {
    const Machine machine(2, Order::kRandom);
    Results<int> out(static_cast<size_t>(threads) * 6);
    launch(vote_in_block, dim3(1), dim3(static_cast<unsigned>(threads)), 0, out.get());
    const std::vector<int> got = out.read();
    for (int t = 0; t < threads; ++t) {
      const int* mine = &got[static_cast<size_t>(t) * 6];
      CHECK(mine[0] == (threads + 2) / 3);
      CHECK(mine[1] == 1);
      CHECK(mine[2] == (threads > 17 ? 0 : 1));
      CHECK(mine[3] == (threads > 17 ? 1 : 0));
      CHECK(mine[4] == 0);
      CHECK(mine[5] == threads);
    }
  }
}

struct Shuffled {
  int indexed, up, down, crossed;
  long long wide;
};

__global__ void shuffle_all(int width, int argument, Shuffled* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const int value = lane * 3 + 1;
  Shuffled s;
  s.indexed = __shfl_sync(0xffffffffu, value, argument, width);
  s.up = __shfl_up_sync(0xffffffffu, value, static_cast<unsigned>(argument), width);
  s.down = __shfl_down_sync(0xffffffffu, value, static_cast<unsigned>(argument), width);
  s.crossed = __shfl_xor_sync(0xffffffffu, value, argument, width);
  s.wide = __shfl_xor_sync(0xffffffffu, static_cast<long long>(value) << 33, argument, width);
  out[lane] = s;
}

TEST_CASE("hostlayer: shuffles of every width") {
  const Machine machine(3, Order::kRandom);
  Results<Shuffled> out(32);
  for (int width = 1; width <= 32; width *= 2) {
    for (int argument = 0; argument < 32; ++argument) {
      launch(shuffle_all, dim3(1), dim3(32), 0, width, argument, out.get());
      const std::vector<Shuffled> got = out.read();
      for (int lane = 0; lane < 32; ++lane) {
        const int group = lane / width * width;
        const auto value = [](int source) { return source * 3 + 1; };
        const int up = lane - argument >= group ? lane - argument : lane;
        const int down = lane + argument < group + width ? lane + argument : lane;
        const int crossed = (lane ^ argument) < group + width ? lane ^ argument : lane;
        const Shuffled& s = got[static_cast<size_t>(lane)];
        const bool right = s.indexed == value(group + argument % width) && s.up == value(up) && s.down == value(down) &&
                           s.crossed == value(crossed) && s.wide == static_cast<long long>(value(crossed)) << 33;
        if (!right) {
          CAPTURE(width);
          CAPTURE(argument);
          CAPTURE(lane);
          CHECK(right);
        }
      }
    }
  }
  CHECK(findings() == 0);
}

__global__ void read_lanes_that_are_not_there(int* out) {
  const int value = __shfl_sync(0xffffffffu, 7, static_cast<int>(threadIdx.x) + 8);
  out[threadIdx.x] = value;
}

TEST_CASE("hostlayer: what a shuffle reads from a missing lane is no value to rely on") {
  std::set<int> seen;
  for (uint64_t seed = 0; seed < 5; ++seed) {
    const Machine machine(seed, Order::kForward);
    Results<int> out(16);
    launch(read_lanes_that_are_not_there, dim3(1), dim3(16), 0, out.get());
    const std::vector<int> got = out.read();
    CHECK(got[0] == 7);
    for (size_t lane = 8; lane < 16; ++lane) seen.insert(got[lane]);
  }
  CHECK(seen.size() == 40);
}

struct Votes {
  unsigned ballot, active, equal;
  int any, all, sum, least, most;
  unsigned usum, uleast, umost, both, either, odd;
};

__global__ void vote_in_warp(unsigned mask, const int* in, Votes* out) {
  const int lane = static_cast<int>(threadIdx.x);
  if ((mask >> lane & 1) == 0) return;
  const int v = in[lane];
  const unsigned u = static_cast<unsigned>(v);
  Votes r;
  r.ballot = __ballot_sync(mask, v > 0);
  r.any = __any_sync(mask, v == 5);
  r.all = __all_sync(mask, v > -1000);
  r.sum = __reduce_add_sync(mask, v);
  r.least = __reduce_min_sync(mask, v);
  r.most = __reduce_max_sync(mask, v);
  r.usum = __reduce_add_sync(mask, u);
  r.uleast = __reduce_min_sync(mask, u);
  r.umost = __reduce_max_sync(mask, u);
  r.both = __reduce_and_sync(mask, u);
  r.either = __reduce_or_sync(mask, u);
  r.odd = __reduce_xor_sync(mask, u);
  r.equal = __match_any_sync(mask, v);
  r.active = 0;
  out[lane] = r;
}

TEST_CASE("hostlayer: votes and reductions of any lanes") {
  const Machine machine(4, Order::kRandom);
  std::vector<int> in(32);
  for (int i = 0; i < 32; ++i) in[static_cast<size_t>(i)] = (i * 37 + 11) % 23 - 11;
  in[9] = -2000000000;
  in[20] = 2000000000;
  in[21] = 2000000000;
  Results<int> device_in(32);
  REQUIRE(cudaMemcpy(device_in.get(), in.data(), 128, cudaMemcpyHostToDevice) == cudaSuccess);
  Results<Votes> out(32);
  for (const unsigned mask : {0xffffffffu, 0x1u, 0x80000000u, 0x0f0f00f0u, 0x00700200u, 0xfffffdffu}) {
    launch(vote_in_warp, dim3(1), dim3(32), 0, mask, device_in.get(), out.get());
    const std::vector<Votes> got = out.read();
    Votes e{0, 0, 0, 0, 1, 0, INT32_MAX, INT32_MIN, 0, ~0u, 0, ~0u, 0, 0};
    for (int lane = 0; lane < 32; ++lane) {
      if ((mask >> lane & 1) == 0) continue;
      const int v = in[static_cast<size_t>(lane)];
      const unsigned u = static_cast<unsigned>(v);
      e.ballot |= static_cast<unsigned>(v > 0) << lane;
      e.any |= v == 5;
      e.all &= v > -1000;
      e.usum += u;
      e.least = std::min(e.least, v);
      e.most = std::max(e.most, v);
      e.uleast = std::min(e.uleast, u);
      e.umost = std::max(e.umost, u);
      e.both &= u;
      e.either |= u;
      e.odd ^= u;
    }
    for (int lane = 0; lane < 32; ++lane) {
      if ((mask >> lane & 1) == 0) continue;
      const Votes& g = got[static_cast<size_t>(lane)];
      CHECK(g.ballot == e.ballot);
      CHECK(g.any == e.any);
      CHECK(g.all == e.all);
      CHECK(static_cast<unsigned>(g.sum) == e.usum);
      CHECK(g.usum == e.usum);
      CHECK(g.least == e.least);
      CHECK(g.most == e.most);
      CHECK(g.uleast == e.uleast);
      CHECK(g.umost == e.umost);
      CHECK(g.both == e.both);
      CHECK(g.either == e.either);
      CHECK(g.odd == e.odd);
      unsigned equal = 0;
      for (int other = 0; other < 32; ++other) {
        const bool named = (mask >> other & 1) != 0;
        const bool same = in[static_cast<size_t>(other)] == in[static_cast<size_t>(lane)];
        if (named && same) equal |= 1u << other;
      }
      CHECK(g.equal == equal);
    }
  }
  CHECK(findings() == 0);
}

__global__ void modify(int* i, unsigned* u, unsigned long long* w, long long* l, int* old) {
  const int t = static_cast<int>(threadIdx.x);
  const unsigned bit = static_cast<unsigned>(t) % 32;
  atomicAdd(&i[0], t);
  atomicMin(&i[1], 50 - t);
  atomicMax(&i[2], t - 20);
  atomicSub(&i[3], 2);
  atomicOr(&u[0], 1u << bit);
  atomicAnd(&u[1], ~(1u << bit));
  atomicXor(&u[2], 1u << bit);
  atomicMax(&u[3], static_cast<unsigned>(t) + 0x80000000u);
  atomicAdd(&w[0], 1ull << 40);
  atomicMin(&w[1], (100ull - static_cast<unsigned long long>(t)) << 32 | static_cast<unsigned>(t));
  atomicMax(&w[2], static_cast<unsigned long long>(t) << 50);
  atomicMin(&l[0], -static_cast<long long>(t));
  for (unsigned long long seen = 0;;) {
    const unsigned long long before = atomicCAS(&w[3], seen, seen + 2);
    if (before == seen) break;
    seen = before;
  }
  old[t] = atomicExch(&i[4], t);
}

TEST_CASE("hostlayer: atomic operations") {
  const Machine machine(6, Order::kRandom);
  const int threads = 64;
  Results<int> i(5);
  Results<unsigned> u(4);
  Results<unsigned long long> w(4);
  Results<long long> l(1);
  Results<int> old(threads);
  const std::vector<int> i0{0, 1000, -1000, 0, -1};
  const std::vector<unsigned> u0{0, ~0u, 0, 0};
  const std::vector<unsigned long long> w0{0, ~0ull, 0, 0};
  const long long l0 = 5;
  cudaMemcpy(i.get(), i0.data(), 20, cudaMemcpyHostToDevice);
  cudaMemcpy(u.get(), u0.data(), 16, cudaMemcpyHostToDevice);
  cudaMemcpy(w.get(), w0.data(), 32, cudaMemcpyHostToDevice);
  cudaMemcpy(l.get(), &l0, 8, cudaMemcpyHostToDevice);
  launch(modify, dim3(1), dim3(threads), 0, i.get(), u.get(), w.get(), l.get(), old.get());
  const std::vector<int> i1 = i.read();
  CHECK(i1[0] == 64 * 63 / 2);
  CHECK(i1[1] == -13);
  CHECK(i1[2] == 43);
  CHECK(i1[3] == -128);
  CHECK(u.read() == std::vector<unsigned>{~0u, 0, 0, 0x80000000u + 63});
  CHECK(w.read() == std::vector<unsigned long long>{64ull << 40, 37ull << 32 | 63, 63ull << 50, 128});
  CHECK(l.read()[0] == -63);
  // The exchanged values are a chain: everyone's predecessor, and the last stays.
  std::vector<int> chain = old.read();
  chain.push_back(i1[4]);
  std::sort(chain.begin(), chain.end());
  for (int t = -1; t < threads; ++t) CHECK(chain[static_cast<size_t>(t + 1)] == t);
}

TEST_CASE("hostlayer: integer intrinsics") {
  CHECK(__mulhi(-3, 1 << 30) == -1);
  CHECK(__umulhi(0xffffffffu, 0xffffffffu) == 0xfffffffeu);
  CHECK(__umul64hi(~0ull, ~0ull) == ~0ull - 1);
  CHECK(__mul64hi(-1, 5) == -1);
  CHECK(__popc(0xf0f0u) == 8);
  CHECK(__popcll(~0ull) == 64);
  CHECK(__ffs(0) == 0);
  CHECK(__ffs(8) == 4);
  CHECK(__clz(0) == 32);
  CHECK(__clz(1) == 31);
  CHECK(__clzll(0) == 64);
  CHECK(__clzll(1) == 63);
  CHECK(__brev(1u) == 0x80000000u);
  CHECK(__brev(0x12345678u) == 0x1e6a2c48u);
  CHECK(__brevll(1ull) == 1ull << 63);
  CHECK(__funnelshift_r(0x11223344u, 0xaabbccddu, 8) == 0xdd112233u);
  CHECK(__funnelshift_r(0x11223344u, 0xaabbccddu, 32) == 0x11223344u);
  CHECK(__funnelshift_l(0x11223344u, 0xaabbccddu, 8) == 0xbbccdd11u);
  CHECK(min(-1, 1) == -1);
  CHECK(max(2u, 3u) == 3u);
  CHECK(max(1ull << 40, 2ull) == 1ull << 40);
}

__global__ void copy_shared(unsigned char* out, int bytes) {
  GIMBAL_DYNAMIC_SHARED(raw);
  for (int i = 0; i < bytes; ++i) out[blockIdx.x * static_cast<unsigned>(bytes) + static_cast<unsigned>(i)] = raw[i];
}

TEST_CASE("hostlayer: shared memory and device memory start as poison, another for each seed and block") {
  std::set<std::string> contents;
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    const Machine machine(seed, Order::kForward);
    Results<unsigned char> out(3 * 64);
    const std::vector<unsigned char> fresh = out.read();
    contents.emplace(fresh.begin(), fresh.begin() + 64);
    launch(copy_shared, dim3(3), dim3(1), 64, out.get(), 64);
    const std::vector<unsigned char> got = out.read();
    for (int block = 0; block < 3; ++block) contents.emplace(got.begin() + block * 64, got.begin() + (block + 1) * 64);
  }
  CHECK(contents.size() == 12);
}

__global__ void shared_address(unsigned long long* out) {
  GIMBAL_DYNAMIC_SHARED(raw);
  *out = reinterpret_cast<unsigned long long>(raw);
}

TEST_CASE("hostlayer: shared memory and allocations are aligned") {
  const Machine machine(1, Order::kRandom);
  Results<unsigned long long> out(1);
  launch(shared_address, dim3(1), dim3(1), 48, out.get());
  CHECK(out.read()[0] % 64 == 0);
  for (const size_t bytes : {1, 7, 300}) {
    void* p = nullptr;
    REQUIRE(cudaMalloc(&p, bytes) == cudaSuccess);
    CHECK(reinterpret_cast<uintptr_t>(p) % 256 == 0);
    CHECK(cudaFree(p) == cudaSuccess);
  }
}

struct alignas(16) Large {
  long long first;
  unsigned char bytes[200];
};

__global__ void many_arguments(unsigned char small, Large large, short half, double real, const int* pointer, int* out) {
  out[threadIdx.x] = small + static_cast<int>(large.first) + large.bytes[199] + half + static_cast<int>(real) + *pointer;
}

TEST_CASE("hostlayer: arguments of any size are taken at the launch") {
  const Machine machine(1, Order::kRandom);
  Results<int> out(4);
  Results<int> one(1);
  const int value = 1000000;
  REQUIRE(cudaMemcpy(one.get(), &value, 4, cudaMemcpyHostToDevice) == cudaSuccess);
  unsigned char small = 1;
  Large large{10, {}};
  large.bytes[199] = 100;
  short half = 1000;
  double real = 10000.5;
  const int* pointer = one.get();
  int* target = out.get();
  void* args[] = {&small, &large, &half, &real, &pointer, &target};
  REQUIRE(cudaLaunchKernel(many_arguments, dim3(1), dim3(4), args, 0, nullptr) == cudaSuccess);
  small = 9;
  large.first = 0;
  pointer = nullptr;
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(out.read() == std::vector<int>(4, 1 + 10 + 100 + 1000 + 10000 + 1000000));
}

// Half of the block returns; of the rest, what waits goes on without it.
__global__ void half_returns(int* out) {
  const int t = static_cast<int>(threadIdx.x);
  const int lane = t % 32;
  if (t % 2 == 1) return;
  int sum = static_cast<int>(__reduce_add_sync(0xffffffffu, static_cast<unsigned>(lane)));
  sum += __shfl_xor_sync(0xffffffffu, lane, 2);
  __syncwarp();
  __syncthreads();
  sum += 1000 * __syncthreads_count(1);
  out[t] = sum;
}

TEST_CASE("hostlayer: with its check off, divergence is borne: those that have returned are not waited for") {
  for (const Order order : {Order::kRandom, Order::kForward, Order::kBackward}) {
    for (uint64_t seed = 0; seed < 10; ++seed) {
      const Machine machine(seed, order);
      Config c = config();
      c.check_divergence = false;
      configure(c);
      Results<int> out(64);
      launch(half_returns, dim3(1), dim3(64), 0, out.get());
      const std::vector<int> got = out.read();
      for (int t = 0; t < 64; t += 2) CHECK(got[static_cast<size_t>(t)] == 15 * 16 + (t % 32 ^ 2) + 32000);
      CHECK(findings() == 0);
    }
  }
}

// Some lanes synchronise among themselves while others already wait for the whole warp.
__global__ void some_before_all(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  int value = lane;
  if (lane >= 8) value = __reduce_max_sync(0xffffff00u, value - 8);
  if (lane >= 24) value += __shfl_sync(0xff000000u, lane, 30);
  out[lane] = __reduce_add_sync(0xffffffffu, value);
}

TEST_CASE("hostlayer: lanes may wait for a whole warp of which some still synchronise among themselves") {
  for (const Order order : {Order::kRandom, Order::kForward, Order::kBackward}) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
      const Machine machine(seed, order);
      Results<int> out(32);
      launch(some_before_all, dim3(1), dim3(32), 0, out.get());
      CHECK(out.read() == std::vector<int>(32, 28 + 24 * 23 + 8 * 30));
      CHECK(findings() == 0);
    }
  }
}

__global__ void deep(int* out, int depth) {
  // About a kilobyte of the stack for each level.
  struct Recursion {
    __device__ static int descend(int levels) {
      volatile int frame[256];
      frame[levels % 256] = levels;
      return levels == 0 ? 0 : descend(levels - 1) + (frame[levels % 256] != 0);
    }
  };
  out[threadIdx.x] = Recursion::descend(depth);
}

TEST_CASE("hostlayer: a thread's stack can be made larger") {
  const Machine machine(1, Order::kRandom);
  Config c = config();
  c.stack_bytes = size_t{1} << 20;
  configure(c);
  Results<int> out(8);
  launch(deep, dim3(2), dim3(8), 0, out.get(), 200);
  CHECK(out.read() == std::vector<int>(8, 200));
}

}  // namespace
}  // namespace test
}  // namespace hostlayer
