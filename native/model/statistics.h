// What was routed where, counted online: for each layer and source DP rank the (token, expert) pairs of a window, which either
// slides or fades. One thread at a time. Time is the number of tokens counted so far, over all sources, so the same calls give
// the same counts wherever they are made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../spec/statistics.h"

namespace gimbal {

struct StatisticsOptions {
  int32_t layers = 0;
  int32_t sources = 0;
  int32_t experts = 0;
  bool fades = false;         // exponentially; else the window slides
  int64_t window_tokens = 0;  // rounded up to a multiple of kBuckets; the half-life, where it fades
};

// What was wrong with a snapshot, for the border to name.
enum class RestoreFailure : int32_t { kNone, kLength, kMagic, kVersion, kShape, kWindow, kChecksum, kContent };

class RoutingStatistics {
 public:
  // The last tokens stand in a ring of buckets, by source: the sliding window is their sum, and drift compares them.
  static constexpr int32_t kBuckets = 16;
  // Limits that keep a bucket's cells below 2^32: at most 2^25 tokens of 32 experts, and one set of counts that come summed.
  static constexpr int64_t kMostWindowTokens = int64_t{1} << 27;
  static constexpr int32_t kMostChoices = 32;                   // experts of one token in a layer
  static constexpr uint64_t kMostPushed = (uint64_t{1} << 31) - 1;  // pairs of one source in one layer, that come summed
  static constexpr uint64_t kMostTokensEver = uint64_t{1} << 53;

  explicit RoutingStatistics(const StatisticsOptions& options);

  // Counts tokens that chose experts: `choices` [tokens][layers][k]. Nothing is counted where one of them is no expert: returns
  // its place, else -1. Allocates nothing.
  template <class Id>
  int64_t observe(int32_t source, const Id* choices, int64_t tokens, int32_t k);

  // Counts what comes summed, [layers][count_sources][experts] for the sources from `first` on, as the newest tokens, all of one
  // age: in a layer, a source's tokens are its pairs / k, rounded up. Nothing is counted where a source's pairs in a layer are
  // more than kMostPushed: returns the place of the count that was too much, else -1.
  int64_t observe_counts(int32_t first, int32_t count_sources, const uint32_t* counts, int32_t k);

  // Fills `into` [layers][sources][experts], thin sources shrunk towards the mean by the weight of `prior_tokens`
  // (spec/statistics.h). Returns the place of a count that does not fit 32 bits, else -1.
  int64_t counts(int64_t prior_tokens, uint32_t* into) const;

  // Fills `into` [layers][sources] with the window's tokens.
  void tokens(double* into) const;

  // Fills `into` [kBuckets - 1][layers][experts] with the pairs of whole buckets, oldest first, of one source or, with -1, all.
  // Returns how many there are.
  int32_t whole_buckets(int32_t source, double* into) const;

  // Forgets one source, or all and the time too with -1.
  void reset(int32_t source);

  uint64_t tokens_seen() const { return seen_; }
  size_t memory_bytes() const;

  size_t snapshot_bytes() const;
  void snapshot(uint8_t* into) const;
  // All is checked before anything changes.
  RestoreFailure restore(const uint8_t* bytes, size_t size);

 private:
  size_t row(int32_t layer, int32_t source) const {
    return (static_cast<size_t>(layer) * static_cast<size_t>(options_.sources) + static_cast<size_t>(source)) * row_cells_;
  }
  uint32_t* bucket(uint64_t number) { return ring_.data() + number % kBuckets * sums_.size(); }
  const uint32_t* bucket(uint64_t number) const { return ring_.data() + number % kBuckets * sums_.size(); }

  void turn_to(uint64_t token);
  void open_buckets(uint64_t number);
  uint64_t same_weight_until(uint64_t token) const;
  template <class Id>
  void add_run(int32_t source, const Id* choices, int64_t tokens, int32_t k);
  void add_counts(int32_t layer, int32_t source, const uint32_t* counts, uint64_t k);
  RestoreFailure check(const uint8_t* snapshot, size_t size) const;
  void sum_ring();
  int64_t layer_counts(int32_t layer, int64_t prior_tokens, uint32_t* into) const;
  uint64_t to_q8(uint64_t sum) const;

  const StatisticsOptions options_;
  const size_t row_cells_;  // the experts, and the row's tokens
  const uint64_t bucket_tokens_;

  uint64_t seen_ = 0;     // tokens, ever
  uint64_t opened_ = 0;   // the number of the newest bucket
  uint64_t halvings_ = 0;  // powers of two taken out of sums_
  uint64_t weight_ = 1;    // of the newest token, in sums_

  std::vector<uint32_t> ring_;  // [kBuckets][layers][sources][experts + 1]
  std::vector<uint64_t> sums_;  // [layers][sources][experts + 1], weighted
  mutable std::vector<int64_t> layer_q8_;  // [sources][experts], 1/256 of a pair
};

}  // namespace gimbal
