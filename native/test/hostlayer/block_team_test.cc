// The GPU's Teams on this layer, primitive by primitive, for blocks of one warp to 32 and ranges around every size at which
// they change their ways. The kernels here are checked access by access like those of the plug-in.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "../../solver/cuda/block_team.h"
#include "hostlayer.h"
#include "random.h"
#include "test_machine.h"

namespace hostlayer {
namespace test {
namespace {

using namespace gimbal::spec;
using gimbal::cuda::BlockTeam;
using gimbal::cuda::DeviceTeam;
using gimbal::cuda::WarpTeam;

// What the kernel works on and what it finds.
struct Arrays {
  const i32* values;  // [planes * rows * columns]
  i32 planes, rows, columns;
  i64* sums;       // [4]: sum as i64, sum as i32, max, sum by solo
  Best* bests;     // [3]: argmin, argmin3, argmin by solo
  Best* row_best;  // [rows]
  RowTotals* row_totals;  // [rows], of the odd ones
  i32* visits;     // [planes * rows * columns]
  i32* mirror;     // the same: what others wrote, read in the opposite order
  i32* copied;     // the same: the values
  i32* ids;        // the same: the values as ids below kIds
  i32* tallies;    // [kIds], clear
  i32* tickets;    // [1]
};
constexpr i32 kIds = 7;

template <class Team>
void work(Team& team, const Arrays& given) {
  const Arrays a = given;
  const i32 count = a.planes * a.rows * a.columns;
  const i32 plane = a.rows * a.columns;
  // Whatever a primitive writes, every thread sees when it returns.
  const auto look = [&](const i32* from, i32 n) { team.for_each(n, [=](i32 i) { a.mirror[i] = from[n - 1 - i]; }); };
  team.copy(count, a.values, a.mirror);
  team.for_each(count, [=](i32 i) { a.copied[count - 1 - i] = a.mirror[count - 1 - i]; });
  team.for_each(count, [=](i32 i) { a.visits[i] = 1; });
  look(a.visits, count);
  team.for_each2(a.rows, a.columns, [=](i32 r, i32 c) { a.visits[r * a.columns + c] += 10; });
  look(a.visits, count);
  team.for_each2(a.rows, a.columns, [=](i32 r, i32 c) { a.visits[r * a.columns + c] += 100; },
                 [=](i32 r, i32 c) { a.visits[r * a.columns + c] += 1000; });
  look(a.visits, count);
  team.for_each3(a.rows, a.planes, a.columns, [=](i32 r, i32 p, i32 c) { a.visits[p * plane + r * a.columns + c] += 10000; });
  look(a.visits, count);
  team.for_each(count, [=](i32 i) { a.ids[i] = static_cast<i32>(static_cast<u32>(a.values[i]) % kIds); });
  team.tally(count, a.ids, a.tallies);
  look(a.tallies, min_of(kIds, count));
  team.for_each_shared(count, [=](i32 i) { Team::add(a.tickets, i % 3); });
  look(a.tickets, 1);
  const i64 wide = team.sum(count, [=](i32 i) { return i64{a.values[i]} << 20; });
  const i64 narrow = team.sum(count, [=](i32 i) { return a.values[i]; });
  const i32 most = team.max(count, [=](i32 i) { return a.values[i]; });
  const Best least = team.argmin(count, [=](i32 i) { return a.values[i]; });
  const Best least3 = team.argmin3(a.planes, a.rows, a.columns,
                                   [=](i32 p, i32 r, i32 c) { return a.values[p * plane + r * a.columns + c]; });
  team.min_rows(a.rows, a.columns, [=](i32 r, i32 c) { return a.values[r * a.columns + c]; },
                [=](i32 r, Best best) { a.row_best[r] = best; });
  team.for_each(a.rows, [=](i32 r) { a.mirror[r] = a.row_best[a.rows - 1 - r].score; });
  team.total_rows(
      a.rows, a.columns, [](i32 r) { return r % 2 == 1; },
      [=](i32 r, i32 c) {
        const i32 v = a.values[r * a.columns + c];
        return RowTotals{max_of(v, 0), max_of(-v, 0), v / 64};
      },
      [=](i32 r, RowTotals t) { a.row_totals[r] = t; });
  team.for_each(a.rows, [=](i32 r) { a.mirror[r] = a.row_totals[a.rows - 1 - r].sum; });
  // What was only reduced may be written by one warp or thread that comes next.
  const i32 few = min_of(count, 64);
  const i32 visited = team.max(few, [=](i32 i) { return a.visits[i]; });
  team.solo([=](auto& one) { one.for_each(few, [=](i32 i) { a.visits[i] += visited; }); });
  look(a.visits, count);
  const i32 again = team.max(few, [=](i32 i) { return a.visits[i]; });
  team.single([=]() {
    for (i32 i = 0; i < few; ++i) a.visits[i] -= again / 2;
  });
  look(a.visits, count);
  team.solo([=](auto& one) {
    const i64 sum = one.sum(count, [=](i32 i) { return a.values[i]; });
    const Best best = one.argmin(count, [=](i32 i) { return a.values[i]; });
    one.single([=]() {
      a.sums[3] = sum;
      a.bests[2] = best;
    });
  });
  team.single([=]() {
    a.sums[0] = wide;
    a.sums[1] = narrow;
    a.sums[2] = most;
    a.bests[0] = least;
    a.bests[1] = least3;
  });
}

__global__ void block_kernel(Arrays a) {
  GIMBAL_DYNAMIC_SHARED(shared);
  BlockTeam team(nullptr, shared, a.columns);
  work(team, a);
}

__global__ void warp_kernel(Arrays a) {
  WarpTeam team(nullptr, nullptr, a.columns);
  work(team, a);
}

template <class T>
T* on_device(size_t count) {
  void* at = nullptr;
  REQUIRE(cudaMalloc(&at, count * sizeof(T)) == cudaSuccess);
  return static_cast<T*>(at);
}

template <class T>
std::vector<T> fetch(const T* from, size_t count) {
  std::vector<T> all(count);
  REQUIRE(cudaMemcpy(all.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess);
  return all;
}

Best first_least(const std::vector<i32>& values, i32 begin, i32 end) {
  const auto at = std::min_element(values.begin() + begin, values.begin() + end);
  return {*at, static_cast<i32>(at - values.begin()) - begin};
}

void check_same(Best a, Best b) {
  CHECK(a.score == b.score);
  CHECK(a.index == b.index);
}

void check_team(Random& random, i32 planes, i32 rows, i32 columns, int threads) {
  const size_t count = static_cast<size_t>(planes * rows * columns);
  std::vector<i32> values(count);
  const int bits = 1 + static_cast<int>(random.below(31));  // few bits: many equals; all: sums beyond 32
  for (i32& v : values) v = static_cast<i32>(random.next() >> 33) >> (31 - bits);
  for (i32& v : values) v -= random.below(4) == 0 ? v / 2 * 3 : 0;
  i32* const given = on_device<i32>(count);
  REQUIRE(cudaMemcpy(given, values.data(), count * sizeof(i32), cudaMemcpyHostToDevice) == cudaSuccess);
  Arrays a{given, planes, rows, columns, on_device<i64>(4), on_device<Best>(3), on_device<Best>(static_cast<size_t>(rows)),
           on_device<RowTotals>(static_cast<size_t>(rows)), on_device<i32>(count), on_device<i32>(count), on_device<i32>(count),
           on_device<i32>(count), on_device<i32>(kIds), on_device<i32>(1)};
  REQUIRE(cudaMemset(a.tallies, 0, kIds * sizeof(i32)) == cudaSuccess);
  REQUIRE(cudaMemset(a.row_totals, 0x55, static_cast<size_t>(rows) * sizeof(RowTotals)) == cudaSuccess);
  REQUIRE(cudaMemset(a.tickets, 0, sizeof(i32)) == cudaSuccess);
  void* parameters[] = {&a};
  const dim3 block(static_cast<unsigned>(threads == 0 ? 32 : threads));
  REQUIRE(cudaLaunchKernel(threads == 0 ? warp_kernel : block_kernel, dim3(1), block, parameters, BlockTeam::kSharedBytes, nullptr) ==
          cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  i64 sum = 0, tickets = 0;
  for (size_t i = 0; i < count; ++i) {
    sum += values[i];
    tickets += static_cast<i64>(i % 3);
  }
  const std::vector<i64> sums = fetch(a.sums, 4);
  CHECK(sums == std::vector<i64>{sum << 20, sum, *std::max_element(values.begin(), values.end()), sum});
  for (const Best& best : fetch(a.bests, 3)) check_same(best, first_least(values, 0, static_cast<i32>(count)));
  const std::vector<Best> row_best = fetch(a.row_best, static_cast<size_t>(rows));
  const std::vector<RowTotals> row_totals = fetch(a.row_totals, static_cast<size_t>(rows));
  for (i32 r = 0; r < rows; ++r) {
    check_same(row_best[static_cast<size_t>(r)], first_least(values, r * columns, (r + 1) * columns));
    if (r % 2 == 0) {  // nobody asked for it
      CHECK(row_totals[static_cast<size_t>(r)].sum == 0x55555555);
      continue;
    }
    RowTotals t{0, 0, 0};
    for (i32 c = 0; c < columns; ++c) {
      const i32 v = values[static_cast<size_t>(r * columns + c)];
      t = joined(t, {std::max(v, 0), std::max(-v, 0), v / 64});
    }
    CHECK(row_totals[static_cast<size_t>(r)].first_max == t.first_max);
    CHECK(row_totals[static_cast<size_t>(r)].second_max == t.second_max);
    CHECK(row_totals[static_cast<size_t>(r)].sum == t.sum);
  }
  const std::vector<i32> visits = fetch(a.visits, count);
  // The first few were given the most of them, 11111, and lost half of the most that any then had.
  const auto before = [&](size_t i) { return i < static_cast<size_t>(rows * columns) ? 11111 : 10001; };
  for (size_t i = 0; i < count; ++i) CHECK(visits[i] == before(i) + (i < 64 ? 11111 - 22222 / 2 : 0));
  CHECK(fetch(a.tickets, 1)[0] == tickets);
  CHECK(fetch(a.copied, count) == values);
  std::vector<i32> tallies(kIds, 0);
  for (const i32 v : values) ++tallies[static_cast<u32>(v) % kIds];
  CHECK(fetch(a.tallies, kIds) == tallies);
  for (void* at : {static_cast<void*>(given), static_cast<void*>(a.sums), static_cast<void*>(a.bests),
                   static_cast<void*>(a.row_best), static_cast<void*>(a.row_totals), static_cast<void*>(a.visits),
                   static_cast<void*>(a.mirror), static_cast<void*>(a.copied), static_cast<void*>(a.ids),
                   static_cast<void*>(a.tallies), static_cast<void*>(a.tickets)}) {
    REQUIRE(cudaFree(at) == cudaSuccess);
  }
}

}  // namespace

TEST_CASE("block team: every primitive is what it is over plain loops, for any block") {
  Random random(4);
  for (const int threads : {0, 32, 64, 96, 160, 256, 1024}) {  // 0: a Team that is a warp
    for (uint64_t seed = 1; seed <= 6; ++seed) {
      const Machine machine(seed, seed == 1 ? Order::kForward : seed == 2 ? Order::kBackward : Order::kRandom);
      const i32 columns = static_cast<i32>(seed % 3 == 0 ? 16 * (1 + random.below(8)) : 1 + random.below(100));
      const i32 rows = static_cast<i32>(1 + random.below(11));
      const i32 planes = static_cast<i32>(1 + random.below(5));
      CAPTURE(threads);
      CAPTURE(seed);
      CAPTURE(columns);
      CAPTURE(rows);
      check_team(random, planes, rows, columns, threads);
      CHECK_MESSAGE(findings() == 0, last_report());
#if defined(HOSTLAYER_TEST_INSTRUMENTED)
      CHECK(counters().checked_accesses > 0);
#endif
    }
  }
}

}  // namespace test
}  // namespace hostlayer
