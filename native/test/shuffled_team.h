// A Team that does everything out of order. It promises what the spec may rely on and nothing more: each index is visited
// once, the depths of one (row, column) come in order, and a reduction is that of the whole range. Ranges are cut into blocks
// of odd sizes, the blocks are taken in a random order and each is walked through forwards, backwards or at random; reductions
// combine values pairwise in a random tree.
// It has TeamCpu's constructor, so that the kernels can be compiled over it (shuffled_kernels.cc).
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "../spec/order.h"
#include "../spec/units.h"
#include "random.h"

namespace gimbal {
namespace test {

class ShuffledTeam {
 public:
  static constexpr bool kSkipsPay = false;

  ShuffledTeam(const spec::i32* noise_table, spec::i32*) : noise_table_(noise_table), random_(next_stream()) {}

  const spec::i32* noise_table() const { return noise_table_; }
  void sync() {}

  template <class F>
  void single(F f) {
    f();
  }

  template <class F>
  void solo(F f) {
    f(*this);
  }

  template <class F>
  void for_each(spec::i32 count, F f) {
    shuffle(count);
    for (spec::i32 i : order_) f(i);
  }

  template <class T>
  void copy(spec::i32 count, const T* from, T* to) {
    for_each(count, [=](spec::i32 i) { to[i] = from[i]; });
  }

  template <class F>
  void for_each2(spec::i32 rows, spec::i32 columns, F f) {
    shuffle(rows * columns);
    for (spec::i32 i : order_) f(i / columns, i % columns);
  }

  template <class F1, class F2>
  void for_each2(spec::i32 rows, spec::i32 columns, F1 first, F2 second) {
    shuffle(2 * rows * columns);
    for (spec::i32 i : order_) {
      const spec::i32 cell = i / 2;
      if (i % 2 == 0) first(cell / columns, cell % columns);
      if (i % 2 == 1) second(cell / columns, cell % columns);
    }
  }

  // Cells take turns in a random order: each has its depths one after the other, the others' in between.
  template <class F>
  void for_each3(spec::i32 rows, spec::i32 depth, spec::i32 columns, F f) {
    shuffle(rows * depth * columns);
    std::vector<spec::i32> next(static_cast<size_t>(rows * columns), 0);
    for (spec::i32 i : order_) {
      const spec::i32 cell = i / depth;
      f(cell / columns, next[static_cast<size_t>(cell)]++, cell % columns);
    }
  }

  template <class F>
  void for_each_shared(spec::i32 count, F f) {
    for_each(count, f);
  }

  void tally(spec::i32 count, const spec::i32* ids, spec::i32* counters) {
    for_each(count, [=](spec::i32 i) { ++counters[ids[i]]; });
  }

  static void set(spec::i32* at, spec::i32 value) { *at = value; }

  template <class T>
  static T add(T* counter, T more) {
    const T before = *counter;
    *counter += more;
    return before;
  }

  template <class F>
  auto max(spec::i32 count, F f) -> decltype(f(0)) {
    using T = decltype(f(0));
    return reduce<T>(count, spec::least_value<T>(), f, [](T a, T b) { return a > b ? a : b; });
  }

  template <class F>
  spec::i64 sum(spec::i32 count, F f) {
    return reduce<spec::i64>(count, 0, f, [](spec::i64 a, spec::i64 b) { return a + b; });
  }

  template <class F>
  spec::Best argmin(spec::i32 count, F f) {
    return reduce<spec::Best>(
        count, spec::Best{INT32_MAX, -1}, [&](spec::i32 i) { return spec::Best{f(i), i}; },
        [](spec::Best a, spec::Best b) { return spec::precedes(b, a) ? b : a; });
  }

  template <class F>
  spec::Best argmin3(spec::i32 planes, spec::i32 rows, spec::i32 columns, F f) {
    return argmin(planes * rows * columns, [&](spec::i32 i) {
      return f(i / columns / rows, i / columns % rows, i % columns);
    });
  }

  template <class Wanted, class F, class Done>
  void total_rows(spec::i32 rows, spec::i32 columns, Wanted wanted, F f, Done done) {
    shuffle(rows);
    const std::vector<spec::i32> order = order_;  // reduce draws orders of its own
    for (spec::i32 r : order) {
      if (!wanted(r)) continue;
      const auto joined = [](spec::RowTotals a, spec::RowTotals b) { return spec::joined(a, b); };
      done(r, reduce<spec::RowTotals>(columns, spec::RowTotals{0, 0, 0}, [&](spec::i32 c) { return f(r, c); }, joined));
    }
  }

  template <class F, class Done>
  void min_rows(spec::i32 rows, spec::i32 columns, F f, Done done) {
    shuffle(rows);
    const std::vector<spec::i32> order = order_;  // argmin draws orders of its own
    for (spec::i32 r : order) done(r, argmin(columns, [&](spec::i32 c) { return f(r, c); }));
  }

 private:
  // Every team of the process draws its own orders, so no two runs of one walk share them.
  static uint64_t next_stream() {
    static thread_local uint64_t stream = 0x5345;
    return ++stream;
  }

  void shuffle(spec::i32 count) {
    blocks_.clear();
    for (spec::i32 from = 0; from < count;) {
      const spec::i32 to = std::min(count, from + 2 * random_.below(12) + 1);
      blocks_.emplace_back(from, to);
      from = to;
    }
    random_.shuffle(&blocks_);
    order_.clear();
    for (const auto& [from, to] : blocks_) {
      std::vector<spec::i32>& block = block_;
      block.clear();
      for (spec::i32 i = from; i < to; ++i) block.push_back(i);
      const int manner = random_.below(3);
      if (manner == 1) order_.insert(order_.end(), block.rbegin(), block.rend());
      if (manner == 2) random_.shuffle(&block);
      if (manner != 1) order_.insert(order_.end(), block.begin(), block.end());
    }
  }

  template <class T, class F, class Combine>
  T reduce(spec::i32 count, T none, F f, Combine combine) {
    shuffle(count);
    std::vector<T> values;
    values.reserve(order_.size());
    for (spec::i32 i : order_) values.push_back(f(i));
    if (values.empty()) return none;
    while (values.size() > 1) {  // one level of the tree: neighbours pair up, from a random end
      std::vector<T> above;
      size_t i = 0;
      if (values.size() % 2 != 0 || random_.chance(0.5)) above.push_back(values[i++]);
      for (; i + 1 < values.size(); i += 2) above.push_back(combine(values[i + 1], values[i]));
      if (i < values.size()) above.push_back(values[i]);
      values.swap(above);
    }
    return values[0];
  }

  const spec::i32* noise_table_;
  Random random_;
  std::vector<std::pair<spec::i32, spec::i32>> blocks_;
  std::vector<spec::i32> block_;
  std::vector<spec::i32> order_;
};

}  // namespace test
}  // namespace gimbal
