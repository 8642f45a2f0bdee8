#include "prefix_index.h"

#include <algorithm>

#include "../spec/random.h"

namespace gimbal {

PrefixIndex::Block* PrefixIndex::find(uint64_t hash) {
  if (blocks_.empty()) return nullptr;
  Block* const bucket = &blocks_[(spec::mix64(hash) % kBuckets) * kWays];
  for (size_t way = 0; way < kWays; ++way) {
    if (bucket[way].used != 0 && bucket[way].hash == hash) return &bucket[way];
  }
  return nullptr;
}

PrefixIndex::Block& PrefixIndex::place(uint64_t hash) {
  if (blocks_.empty()) blocks_.resize(kBuckets * kWays);
  if (Block* const found = find(hash)) return *found;
  Block* const bucket = &blocks_[(spec::mix64(hash) % kBuckets) * kWays];
  Block& oldest = *std::min_element(bucket, bucket + kWays, [](const Block& a, const Block& b) { return a.used < b.used; });
  oldest = Block();
  oldest.hash = hash;
  return oldest;
}

const std::vector<int32_t>& PrefixIndex::match(const uint64_t* blocks, int64_t count) {
  for (int32_t engine : touched_) matched_[static_cast<size_t>(engine)] = 0;
  touched_.clear();
  for (int64_t n = 0; n < count; ++n) {
    const Block* const block = find(blocks[n]);
    if (block == nullptr) break;
    bool goes_on = false;
    for (int32_t engine : block->holders) {
      if (engine == kNobody || matched_[static_cast<size_t>(engine)] != n) continue;
      if (n == 0) touched_.push_back(engine);
      matched_[static_cast<size_t>(engine)] = static_cast<int32_t>(n) + 1;
      goes_on = true;
    }
    if (!goes_on) break;
  }
  return matched_;
}

void PrefixIndex::insert(const uint64_t* blocks, int64_t count, int32_t engine) {
  ++clock_;
  for (int64_t n = 0; n < count; ++n) {
    Block& block = place(blocks[n]);
    block.used = clock_;
    auto at = std::find(block.holders.begin(), block.holders.end(), engine);
    if (at == block.holders.end()) --at;  // the oldest gives way
    std::rotate(block.holders.begin(), at, at + 1);
    block.holders.front() = engine;
  }
}

void PrefixIndex::forget(int32_t engine) {
  for (Block& block : blocks_) {
    const auto at = std::find(block.holders.begin(), block.holders.end(), engine);
    if (at == block.holders.end()) continue;
    std::rotate(at, at + 1, block.holders.end());
    block.holders.back() = kNobody;
  }
}

}  // namespace gimbal
