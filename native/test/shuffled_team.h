// A Team that does everything out of order. It promises what the spec may rely on and nothing more: each index is visited
// once, and a reduction is that of the whole range. Ranges are cut into blocks of odd sizes, the blocks are taken in a random
// order and each is walked through forwards, backwards or at random; reductions combine values pairwise in a random tree.
// It has TeamCpu's constructor, so that the kernels can be compiled over it (shuffled_kernels.cc).
#pragma once

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
  ShuffledTeam(const spec::i32* noise_table, spec::i32*) : noise_table_(noise_table), random_(next_stream()) {}

  const spec::i32* noise_table() const { return noise_table_; }
  void sync() {}

  template <class F>
  void single(F f) {
    f();
  }

  template <class F>
  void for_each(spec::i32 count, F f) {
    shuffle(count);
    for (spec::i32 i : order_) f(i);
  }

  template <class F>
  void for_each2(spec::i32 rows, spec::i32 columns, F f) {
    shuffle(rows * columns);
    for (spec::i32 i : order_) f(i / columns, i % columns);
  }

  template <class F>
  spec::i32 max(spec::i32 count, F f) {
    return reduce<spec::i32>(count, INT32_MIN, f, [](spec::i32 a, spec::i32 b) { return a > b ? a : b; });
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
