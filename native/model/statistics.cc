// Counting, and the ring and the sums that make up the window.
#include "statistics.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "../spec/random.h"

namespace gimbal {
namespace {

constexpr spec::WeightTable kWeights = spec::make_weight_table();
// After so many half-lives the sums are halved as often. A sum is below 2^35 pairs of the newest weight (kMostWindowTokens of
// kMostChoices, and counts that come summed), and that weight below 2^(16 + 8).
constexpr uint64_t kMostHalvings = 8;
constexpr int kMostSumBits = 59;
constexpr int kQ8Bits = 8;

constexpr uint32_t kMagic = 0x54534D47;  // "GMST"
constexpr uint32_t kVersion = 1;
constexpr size_t kHeaderWords = 8;

// The half-life is cut to a few buckets, so that the ring remembers about four half-lives.
uint64_t tokens_of_bucket(const StatisticsOptions& options) {
  const uint64_t buckets = options.fades ? RoutingStatistics::kBuckets / 4 : RoutingStatistics::kBuckets;
  return (static_cast<uint64_t>(options.window_tokens) + buckets - 1) / buckets;
}

uint64_t halved(uint64_t sum, uint64_t times) {
  if (times >= 64) return 0;
  return times == 0 ? sum : (sum + (uint64_t{1} << (times - 1))) >> times;
}

template <class Id>
int64_t first_beyond(const Id* choices, int64_t count, int32_t experts) {
  if (experts > static_cast<int32_t>(std::numeric_limits<Id>::max())) return -1;
  Id most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, choices[i]);
  if (most < experts) return -1;
  return std::find_if(choices, choices + count, [&](Id id) { return id >= experts; }) - choices;
}

uint64_t tokens_of(const uint32_t* counts, size_t experts, uint64_t k) {
  return (std::accumulate(counts, counts + experts, uint64_t{0}) + k - 1) / k;
}

void put(uint8_t* into, uint64_t value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) into[i] = static_cast<uint8_t>(value >> (8 * i));
}

uint64_t get(const uint8_t* from, size_t bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes; ++i) value |= static_cast<uint64_t>(from[i]) << (8 * i);
  return value;
}

uint64_t word_of(const uint8_t* snapshot, size_t at) { return get(snapshot + 8 * at, 8); }

uint64_t checksum(const uint8_t* bytes, size_t size) {
  uint64_t hash = kMagic;
  size_t at = 0;
  for (; at + 8 <= size; at += 8) hash = spec::mix64(hash ^ get(bytes + at, 8));
  return spec::mix64(hash ^ get(bytes + at, size - at) ^ size);
}

}  // namespace

RoutingStatistics::RoutingStatistics(const StatisticsOptions& options)
    : options_(options),
      row_cells_(static_cast<size_t>(options.experts) + 1),
      bucket_tokens_(tokens_of_bucket(options)) {
  const size_t rows = static_cast<size_t>(options.layers) * static_cast<size_t>(options.sources);
  sums_.resize(rows * row_cells_);
  ring_.resize(kBuckets * sums_.size());
  layer_q8_.resize(static_cast<size_t>(options.sources) * static_cast<size_t>(options.experts));
}

template <class Id>
int64_t RoutingStatistics::observe(int32_t source, const Id* choices, int64_t tokens, int32_t k) {
  const int64_t per_token = static_cast<int64_t>(options_.layers) * k;
  const int64_t wrong = first_beyond(choices, tokens * per_token, options_.experts);
  if (wrong >= 0) return wrong;
  while (tokens > 0) {
    turn_to(seen_);
    const int64_t run = std::min(tokens, static_cast<int64_t>(same_weight_until(seen_) - seen_));
    add_run(source, choices, run, k);
    seen_ += static_cast<uint64_t>(run);
    choices += run * per_token;
    tokens -= run;
  }
  return -1;
}

template int64_t RoutingStatistics::observe(int32_t, const uint8_t*, int64_t, int32_t);
template int64_t RoutingStatistics::observe(int32_t, const uint16_t*, int64_t, int32_t);

// Tokens of one bucket and one weight.
template <class Id>
void RoutingStatistics::add_run(int32_t source, const Id* choices, int64_t tokens, int32_t k) {
  const size_t next_layer = static_cast<size_t>(options_.sources) * row_cells_;
  const uint64_t weight = weight_;
  uint32_t* const counted = bucket(opened_) + row(0, source);
  uint64_t* const summed = sums_.data() + row(0, source);
  const size_t end = next_layer * static_cast<size_t>(options_.layers);
  for (int64_t token = 0; token < tokens; ++token) {
    for (size_t at = 0; at < end; at += next_layer) {
      uint32_t* const counts = counted + at;
      uint64_t* const sums = summed + at;
      for (int32_t i = 0; i < k; ++i) {
        const size_t expert = *choices++;
        ++counts[expert];
        sums[expert] += weight;
      }
    }
  }
  for (size_t at = row_cells_ - 1; at < end; at += next_layer) {
    counted[at] += static_cast<uint32_t>(tokens);
    summed[at] += weight * static_cast<uint64_t>(tokens);
  }
}

int64_t RoutingStatistics::observe_counts(int32_t first, int32_t count_sources, const uint32_t* counts, int32_t k) {
  const size_t experts = static_cast<size_t>(options_.experts);
  const size_t parts = static_cast<size_t>(options_.layers) * static_cast<size_t>(count_sources);
  const uint64_t of_token = static_cast<uint64_t>(k);
  for (size_t part = 0; part < parts; ++part) {
    uint64_t pairs = 0;
    for (size_t at = part * experts; at < (part + 1) * experts; ++at) {
      pairs += counts[at];
      if (pairs > kMostPushed) return static_cast<int64_t>(at);
    }
  }
  const auto part = [&](int32_t layer, int32_t source) {
    return counts + (static_cast<size_t>(layer) * static_cast<size_t>(count_sources) + static_cast<size_t>(source)) * experts;
  };
  uint64_t passed = 0;
  for (int32_t source = 0; source < count_sources; ++source) {
    uint64_t most = 0;
    for (int32_t layer = 0; layer < options_.layers; ++layer) {
      most = std::max(most, tokens_of(part(layer, source), experts, of_token));
    }
    passed += most;
  }
  if (passed == 0) return -1;
  turn_to(seen_ + passed - 1);
  seen_ += passed;
  for (int32_t source = 0; source < count_sources; ++source) {
    for (int32_t layer = 0; layer < options_.layers; ++layer) add_counts(layer, first + source, part(layer, source), of_token);
  }
  return -1;
}

void RoutingStatistics::add_counts(int32_t layer, int32_t source, const uint32_t* counts, uint64_t k) {
  const size_t experts = static_cast<size_t>(options_.experts);
  uint32_t* const counted = bucket(opened_) + row(layer, source);
  uint64_t* const summed = sums_.data() + row(layer, source);
  for (size_t e = 0; e < experts; ++e) {
    counted[e] += counts[e];
    summed[e] += weight_ * counts[e];
  }
  const uint64_t tokens = tokens_of(counts, experts, k);
  counted[experts] += static_cast<uint32_t>(tokens);
  summed[experts] += weight_ * tokens;
}

// Makes `token` the newest: opens its bucket and sets its weight.
void RoutingStatistics::turn_to(uint64_t token) {
  const uint64_t number = token / bucket_tokens_;
  if (number != opened_) open_buckets(number);
  if (!options_.fades) return;
  const uint64_t tick = spec::tick_of(token, static_cast<uint64_t>(options_.window_tokens));
  uint64_t doublings = (tick >> spec::kTickBits) - halvings_;
  if (doublings >= kMostHalvings) {
    for (uint64_t& sum : sums_) sum = halved(sum, doublings);
    halvings_ += doublings;
    doublings = 0;
  }
  weight_ = static_cast<uint64_t>(kWeights.of[tick % spec::kTicks]) << doublings;
}

void RoutingStatistics::open_buckets(uint64_t number) {
  const uint64_t first = std::max(opened_ + 1, number < kBuckets ? 0 : number - kBuckets + 1);
  for (uint64_t n = first; n <= number; ++n) {
    uint32_t* const old = bucket(n);
    if (!options_.fades) {
      for (size_t i = 0; i < sums_.size(); ++i) sums_[i] -= old[i];
    }
    std::fill_n(old, sums_.size(), 0u);
  }
  opened_ = number;
}

uint64_t RoutingStatistics::same_weight_until(uint64_t token) const {
  const uint64_t bucket_end = (token / bucket_tokens_ + 1) * bucket_tokens_;
  if (!options_.fades) return bucket_end;
  const uint64_t half_life = static_cast<uint64_t>(options_.window_tokens);
  return std::min(bucket_end, spec::first_of_tick(spec::tick_of(token, half_life) + 1, half_life));
}

uint64_t RoutingStatistics::to_q8(uint64_t sum) const {
  return (sum / weight_ << kQ8Bits) + (sum % weight_ << kQ8Bits) / weight_;
}

int64_t RoutingStatistics::counts(int64_t prior_tokens, uint32_t* into) const {
  const int64_t per_layer = static_cast<int64_t>(layer_q8_.size());
  for (int32_t layer = 0; layer < options_.layers; ++layer) {
    const int64_t beyond = layer_counts(layer, prior_tokens, into + layer * per_layer);
    if (beyond >= 0) return layer * per_layer + beyond;
  }
  return -1;
}

int64_t RoutingStatistics::layer_counts(int32_t layer, int64_t prior_tokens, uint32_t* into) const {
  constexpr int64_t kHalf = int64_t{1} << (kQ8Bits - 1);
  const size_t experts = static_cast<size_t>(options_.experts);
  uint64_t all_tokens = 0;
  for (int32_t s = 0; s < options_.sources; ++s) {
    const uint64_t* const sums = sums_.data() + row(layer, s);
    int64_t* const q8 = layer_q8_.data() + static_cast<size_t>(s) * experts;
    for (size_t e = 0; e < experts; ++e) q8[e] = static_cast<int64_t>(to_q8(sums[e]));
    all_tokens += to_q8(sums[experts]);
  }
  const uint32_t credibility = spec::credibility_q31(all_tokens / static_cast<uint64_t>(options_.sources),
                                                     static_cast<uint64_t>(prior_tokens) << kQ8Bits);
  for (size_t e = 0; e < experts; ++e) {
    int64_t sum = 0;
    for (size_t at = e; at < layer_q8_.size(); at += experts) sum += layer_q8_[at];
    const int64_t mean = sum / options_.sources;
    for (size_t at = e; at < layer_q8_.size(); at += experts) {
      const int64_t pairs = (spec::shrunk(layer_q8_[at], mean, credibility) + kHalf) >> kQ8Bits;
      if (pairs > std::numeric_limits<uint32_t>::max()) return static_cast<int64_t>(at);
      into[at] = static_cast<uint32_t>(pairs);
    }
  }
  return -1;
}

void RoutingStatistics::tokens(double* into) const {
  for (int32_t layer = 0; layer < options_.layers; ++layer) {
    for (int32_t s = 0; s < options_.sources; ++s) {
      *into++ = static_cast<double>(to_q8(sums_[row(layer, s) + row_cells_ - 1])) / (1 << kQ8Bits);
    }
  }
}

int32_t RoutingStatistics::whole_buckets(int32_t source, double* into) const {
  const size_t experts = static_cast<size_t>(options_.experts);
  const uint64_t next = seen_ / bucket_tokens_;  // of the token to come: what lies before is whole
  const uint64_t oldest = opened_ + 1 < kBuckets ? 0 : opened_ + 1 - kBuckets;
  const uint64_t first = std::max(oldest, next < kBuckets - 1 ? 0 : next - (kBuckets - 1));
  const int32_t from = source < 0 ? 0 : source, to = source < 0 ? options_.sources : source + 1;
  for (uint64_t n = first; n < next; ++n) {
    for (int32_t layer = 0; layer < options_.layers; ++layer, into += experts) {
      std::fill_n(into, experts, 0.0);
      for (int32_t s = from; s < to; ++s) {
        const uint32_t* const counts = bucket(n) + row(layer, s);
        for (size_t e = 0; e < experts; ++e) into[e] += counts[e];
      }
    }
  }
  return static_cast<int32_t>(next - first);
}

void RoutingStatistics::reset(int32_t source) {
  if (source < 0) {
    std::fill(ring_.begin(), ring_.end(), 0u);
    std::fill(sums_.begin(), sums_.end(), uint64_t{0});
    seen_ = opened_ = halvings_ = 0;
    weight_ = 1;
    return;
  }
  for (int32_t layer = 0; layer < options_.layers; ++layer) {
    std::fill_n(sums_.begin() + static_cast<ptrdiff_t>(row(layer, source)), row_cells_, uint64_t{0});
    for (uint64_t n = 0; n < kBuckets; ++n) std::fill_n(bucket(n) + row(layer, source), row_cells_, 0u);
  }
}

size_t RoutingStatistics::memory_bytes() const {
  return ring_.size() * sizeof(uint32_t) + sums_.size() * sizeof(uint64_t) + layer_q8_.size() * sizeof(int64_t);
}

// ---- snapshots: kHeaderWords words of 8 bytes, the ring, the sums where they fade, and a checksum; little endian.

size_t RoutingStatistics::snapshot_bytes() const {
  return kHeaderWords * 8 + ring_.size() * 4 + (options_.fades ? sums_.size() * 8 : 0) + 8;
}

void RoutingStatistics::snapshot(uint8_t* into) const {
  const uint64_t header[kHeaderWords] = {
      kMagic | (uint64_t{kVersion} << 32),
      static_cast<uint64_t>(options_.layers) | (static_cast<uint64_t>(options_.sources) << 32),
      static_cast<uint64_t>(options_.experts) | (static_cast<uint64_t>(options_.fades) << 32),
      static_cast<uint64_t>(options_.window_tokens),
      seen_,
      opened_,
      halvings_,
      0,
  };
  uint8_t* at = into;
  const auto append = [&](uint64_t value, size_t bytes) {
    put(at, value, bytes);
    at += bytes;
  };
  for (uint64_t word : header) append(word, 8);
  for (uint32_t count : ring_) append(count, 4);
  if (options_.fades) {
    for (uint64_t sum : sums_) append(sum, 8);
  }
  append(checksum(into, static_cast<size_t>(at - into)), 8);
}

RestoreFailure RoutingStatistics::restore(const uint8_t* bytes, size_t size) {
  const RestoreFailure failure = check(bytes, size);
  if (failure != RestoreFailure::kNone) return failure;
  const uint8_t* const ring = bytes + kHeaderWords * 8;
  const uint8_t* const sums = ring + ring_.size() * 4;
  for (size_t i = 0; i < ring_.size(); ++i) ring_[i] = static_cast<uint32_t>(get(ring + 4 * i, 4));
  for (size_t i = 0; options_.fades && i < sums_.size(); ++i) sums_[i] = get(sums + 8 * i, 8);
  if (!options_.fades) sum_ring();
  seen_ = word_of(bytes, 4);
  opened_ = word_of(bytes, 5);
  halvings_ = word_of(bytes, 6);
  weight_ = 1;
  turn_to(seen_ == 0 ? 0 : seen_ - 1);
  return RestoreFailure::kNone;
}

RestoreFailure RoutingStatistics::check(const uint8_t* bytes, size_t size) const {
  if (size < kHeaderWords * 8) return RestoreFailure::kLength;
  const auto word = [&](size_t at) { return word_of(bytes, at); };
  if (static_cast<uint32_t>(word(0)) != kMagic) return RestoreFailure::kMagic;
  if (word(0) >> 32 != kVersion) return RestoreFailure::kVersion;
  const uint64_t rows = static_cast<uint64_t>(options_.layers) | (static_cast<uint64_t>(options_.sources) << 32);
  if (word(1) != rows || static_cast<uint32_t>(word(2)) != static_cast<uint32_t>(options_.experts)) return RestoreFailure::kShape;
  if (word(2) >> 32 != static_cast<uint64_t>(options_.fades) || word(3) != static_cast<uint64_t>(options_.window_tokens)) {
    return RestoreFailure::kWindow;
  }
  if (size != snapshot_bytes()) return RestoreFailure::kLength;
  if (get(bytes + size - 8, 8) != checksum(bytes, size - 8)) return RestoreFailure::kChecksum;
  // A checksum is easily made: what would break the arithmetic is refused all the same.
  const uint64_t seen = word(4), newest = seen == 0 ? 0 : seen - 1;
  const uint64_t doublings = options_.fades ? spec::tick_of(newest, word(3)) >> spec::kTickBits : 0;
  if (seen > kMostTokensEver || word(5) != newest / bucket_tokens_ || word(7) != 0) return RestoreFailure::kContent;
  if (word(6) > doublings || doublings - word(6) >= kMostHalvings) return RestoreFailure::kContent;
  const uint8_t* const sums = bytes + kHeaderWords * 8 + ring_.size() * 4;
  for (size_t i = 0; options_.fades && i < sums_.size(); ++i) {
    if (get(sums + 8 * i, 8) >> kMostSumBits) return RestoreFailure::kContent;
  }
  return RestoreFailure::kNone;
}

void RoutingStatistics::sum_ring() {
  std::fill(sums_.begin(), sums_.end(), uint64_t{0});
  for (size_t i = 0; i < ring_.size(); ++i) sums_[i % sums_.size()] += ring_[i];
}

}  // namespace gimbal
