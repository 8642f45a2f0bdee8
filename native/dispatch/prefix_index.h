// Which engines are thought to hold which blocks of a prompt's prefix, as far as this scheduler sent them there. An approximation
// of the engines' prefix caches with a fixed size: a bucket's oldest block gives way, a block's oldest holder too.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace gimbal {

class PrefixIndex {
 public:
  PrefixIndex() { touched_.reserve(kHolders); }

  // For every engine, how many of the first blocks it holds without a gap; valid until the next call. [engines]
  const std::vector<int32_t>& match(const uint64_t* blocks, int64_t count);
  void insert(const uint64_t* blocks, int64_t count, int32_t engine);
  void add_engine() { matched_.push_back(0); }
  // What an engine held is lost, e.g. by a restart.
  void forget(int32_t engine);

 private:
  static constexpr size_t kBuckets = size_t{1} << 15;
  static constexpr size_t kWays = 4;
  static constexpr size_t kHolders = 6;
  static constexpr int32_t kNobody = -1;

  struct Block {
    uint64_t hash = 0;
    uint64_t used = 0;  // 0: empty
    std::array<int32_t, kHolders> holders{kNobody, kNobody, kNobody, kNobody, kNobody, kNobody};  // the last one first
  };

  Block* find(uint64_t hash);
  Block& place(uint64_t hash);

  std::vector<int32_t> matched_;
  std::vector<int32_t> touched_;  // engines whose matched_ is not 0
  std::vector<Block> blocks_;     // [kBuckets][kWays]; none before the first prefix comes
  uint64_t clock_ = 0;
};

}  // namespace gimbal
