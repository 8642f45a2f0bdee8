// The tests' own random stream: seeded, printed on failure, and unrelated to the code under test.
// GIMBAL_TEST_SEED=<number> moves every seeded case to another stream; GIMBAL_TEST_SHARE=<percent> has the tests of backends
// run so many of their cases (100), for runs that are slow and many.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <utility>
#include <vector>

namespace gimbal {
namespace test {

inline uint64_t base_seed() {
  static const uint64_t seed = [] {
    const char* given = std::getenv("GIMBAL_TEST_SEED");
    return given == nullptr ? 20260601u : std::strtoull(given, nullptr, 10);
  }();
  return seed;
}

inline uint64_t test_share_percent() {
  static const uint64_t percent = [] {
    const char* given = std::getenv("GIMBAL_TEST_SHARE");
    return given == nullptr ? 100u : std::strtoull(given, nullptr, 10);
  }();
  return percent;
}

inline uint64_t share_of(uint64_t cases) { return std::max<uint64_t>(1, cases * test_share_percent() / 100); }

// Whether something happened more than `least` times, which is not asked of less than all cases.
inline bool happened(int64_t count, int64_t least) { return test_share_percent() < 100 || count > least; }

// xorshift128+, started by its seed and a stream number.
class Random {
 public:
  explicit Random(uint64_t stream) : a_(scatter(base_seed() + 1)), b_(scatter(stream * 2 + 1)) {
    for (int i = 0; i < 16; ++i) bits();
  }

  uint64_t bits() {
    uint64_t x = a_;
    const uint64_t y = b_;
    a_ = y;
    x ^= x << 23;
    b_ = x ^ y ^ (x >> 17) ^ (y >> 26);
    return b_ + y;
  }

  // In [0, bound).
  int32_t below(int32_t bound) { return static_cast<int32_t>((bits() >> 33) % static_cast<uint64_t>(bound)); }
  // In [low, high].
  int32_t between(int32_t low, int32_t high) { return low + below(high - low + 1); }
  bool chance(double p) { return uniform() < p; }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  // In [0, 2^bits), with all magnitudes about equally likely.
  uint64_t any_magnitude(int32_t most_bits) {
    const int32_t wanted = between(0, most_bits);
    return wanted == 0 ? 0 : bits() >> (64 - wanted);
  }

  template <class T>
  void shuffle(std::vector<T>* items) {
    for (size_t i = items->size(); i > 1; --i) {
      std::swap((*items)[i - 1], (*items)[static_cast<size_t>(below(static_cast<int32_t>(i)))]);
    }
  }

 private:
  static uint64_t scatter(uint64_t x) {
    x = (x ^ (x >> 32)) * 0xD6E8FEB86659FD93ULL;
    x = (x ^ (x >> 32)) * 0xD6E8FEB86659FD93ULL;
    return (x ^ (x >> 32)) | 1;
  }
  uint64_t a_;
  uint64_t b_;
};

}  // namespace test
}  // namespace gimbal
