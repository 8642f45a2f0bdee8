// Checks a problem and turns its costs and weights into fixed point.
//
// One unit for load and communication: a power of two of a nanosecond, the finest for which every cost is below 2^31 and
// three times the worst sum over all layers is below 2^62. Weights become Q31 fractions of the greatest weight, so J's
// unit is that weight times the cost unit. Powers of two keep "nice" costs exact.
#include "quantise.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "errors.h"

namespace gimbal {
namespace {

constexpr int kLeastCostBits = 10;
// Wider than any clock or wide-area link, and far from where doubles end.
constexpr double kLeastCostNs = 1e-15;
constexpr double kMostCostNs = 1e15;
constexpr double kMostWeight = 1e15;

void require(bool ok, const char* field, const std::string& expected, const std::string& received) {
  if (!ok) throw Error(ErrorCode::kInvalidInput, field, expected, received);
}

std::string text(double x) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.9g", x);
  return digits;
}

void check_shape(const ProblemInput& in) {
  const auto positive = [](int32_t x, const char* field) {
    require(x >= 1, field, "a positive integer", std::to_string(x));
  };
  positive(in.layers, "layers");
  positive(in.sources, "sources");
  positive(in.experts, "experts");
  positive(in.gpus, "gpus");
  positive(in.slots_per_gpu, "slotsPerGpu");
  constexpr int64_t kMostCells = int64_t{1} << 24;
  require(int64_t{in.gpus} * in.slots_per_gpu <= kMostCells, "slotsPerGpu", "at most 2^24 slots over all GPUs",
          std::to_string(int64_t{in.gpus} * in.slots_per_gpu));
  require(int64_t{in.experts} * (in.gpus + 15) <= kMostCells * 4, "experts", "at most 2^26 (expert, GPU) pairs",
          std::to_string(int64_t{in.experts} * in.gpus));
  // A step of the search scores this many swaps at once; beyond it a plan could not be stopped within 20 ms.
  constexpr int64_t kMostSwaps = int64_t{1} << 24;
  const int64_t swaps = int64_t{in.slots_per_gpu} * in.slots_per_gpu * spec::padded_gpus(in.gpus);
  require(in.slots_per_gpu <= (1 << 16) && swaps <= kMostSwaps, "slotsPerGpu",
          "slotsPerGpu^2 * gpus of at most 2^24 (gpus rounded up to 16)", std::to_string(in.slots_per_gpu));
  // The search counts an expert's copies on a GPU in a byte.
  require(!in.allow_duplicates || in.slots_per_gpu <= 255, "slotsPerGpu", "at most 255 with allowDuplicates",
          std::to_string(in.slots_per_gpu));
  require(in.tokens != nullptr, "tokens", "counts for every layer, source and expert", "none");
}

void check_costs(const ProblemInput& in) {
  const auto check_all = [](const std::vector<double>& values, size_t count, const char* field) {
    require(values.size() == count, field, std::to_string(count) + " costs", std::to_string(values.size()));
    for (size_t i = 0; i < values.size(); ++i) {
      const double x = values[i];
      require(std::isfinite(x) && x >= 0, field, "finite costs of at least 0 ns", text(x) + " at index " + std::to_string(i));
      if (x > kMostCostNs || (x > 0 && x < kLeastCostNs)) {
        throw Error(ErrorCode::kOutOfRange, field, "0 or costs from 1e-15 to 1e15 ns",
                    text(x) + " at index " + std::to_string(i));
      }
    }
  };
  check_all(in.compute_cost_ns, static_cast<size_t>(in.gpus), "computeCost");
  check_all(in.comm_cost_ns, static_cast<size_t>(in.sources) * static_cast<size_t>(in.gpus), "commCost");
  const auto check_one = [](double x, const char* field) {
    require(std::isfinite(x) && x >= 0, field, "a finite number of at least 0", text(x));
    if (x > kMostWeight) throw Error(ErrorCode::kOutOfRange, field, "at most 1e15", text(x));
  };
  check_one(in.weights.load, "weights.load");
  check_one(in.weights.comm_max, "weights.commMax");
  check_one(in.weights.comm_total, "weights.commTotal");
  check_one(in.weights.migration, "weights.migration");
  check_one(in.migration_cost_ns, "migrationCost");
}

void list_live_gpus(const ProblemInput& in, Quantised* q) {
  std::vector<char> dead(static_cast<size_t>(in.gpus), 0);
  for (int32_t g : in.dead_gpus) {
    require(g >= 0 && g < in.gpus, "deadGpus", "GPU ids from 0 to " + std::to_string(in.gpus - 1), std::to_string(g));
    dead[static_cast<size_t>(g)] = 1;
  }
  q->live_index.assign(static_cast<size_t>(in.gpus), -1);
  for (int32_t g = 0; g < in.gpus; ++g) {
    if (dead[static_cast<size_t>(g)]) continue;
    q->live_index[static_cast<size_t>(g)] = static_cast<int32_t>(q->gpu_id.size());
    q->gpu_id.push_back(g);
  }
  q->gpus = static_cast<int32_t>(q->gpu_id.size());
  const int64_t slots = int64_t{q->gpus} * in.slots_per_gpu;
  if (slots < in.experts) {
    throw Error(ErrorCode::kInfeasible, "slotsPerGpu",
                "at least as many live slots as experts (" + std::to_string(in.experts) + ")",
                std::to_string(slots) + " slots on " + std::to_string(q->gpus) + " live GPUs");
  }
  if (!in.allow_duplicates && in.slots_per_gpu > in.experts) {
    throw Error(ErrorCode::kInfeasible, "slotsPerGpu",
                "at most one slot per expert on a GPU (" + std::to_string(in.experts) + "), or allowDuplicates",
                std::to_string(in.slots_per_gpu));
  }
}

double greatest(const std::vector<double>& values) {
  return values.empty() ? 0.0 : *std::max_element(values.begin(), values.end());
}

// The greatest k with x * 2^k <= 2^bits; 0 for x = 0.
int scale_exponent(double x, int bits) {
  if (x <= 0) return bits;
  int exponent = 0;
  const double mantissa = std::frexp(x, &exponent);  // x = mantissa * 2^exponent, mantissa in [0.5, 1)
  return bits - (mantissa == 0.5 ? exponent - 1 : exponent);
}

int bit_width(uint64_t x) {
  int bits = 0;
  while (bits < 64 && (x >> bits) != 0) ++bits;
  return bits;
}

int64_t scaled(double x, int exponent) { return std::llround(std::ldexp(x, exponent)); }

uint64_t total_tokens(const ProblemInput& in) {
  const size_t count = static_cast<size_t>(in.layers) * static_cast<size_t>(in.sources) * static_cast<size_t>(in.experts);
  uint64_t sum = 0;  // 2^32 * 2^32 counts could not overflow it
  for (size_t i = 0; i < count; ++i) sum += in.tokens[i];
  return sum;
}

void quantise_costs(const ProblemInput& in, Quantised* q) {
  const double w_load = in.weights.load;
  const double w_comm_total = in.weights.comm_total / in.gpus;
  double w_most = std::max({w_load, in.weights.comm_max, w_comm_total});
  const double migration = in.migration_cost_ns * in.weights.migration;
  if (w_most == 0) w_most = 1.0;

  const double cost = std::max(greatest(in.compute_cost_ns), greatest(in.comm_cost_ns));
  const uint64_t tokens = total_tokens(in);
  const int sum_bits = spec::kFineBits - 2;
  const int cost_bits = std::min(spec::kCostBits, sum_bits - bit_width(tokens) - 1);
  int exponent = cost > 0 ? scale_exponent(cost, cost_bits) : 20;
  const double pairs = static_cast<double>(in.layers) * q->gpus * in.slots_per_gpu;
  const double migration_relative = migration / w_most;
  if (migration_relative > 0) {
    exponent = std::min(exponent, scale_exponent(migration_relative * pairs, sum_bits));
  }
  if (cost_bits < kLeastCostBits) {
    throw Error(ErrorCode::kOutOfRange, "tokens", "a sum that leaves costs 10 bits of 62 (divide the counts)",
                std::to_string(tokens) + " tokens");
  }
  if (cost > 0 && std::ldexp(cost, exponent) < (1 << kLeastCostBits)) {
    throw Error(ErrorCode::kOutOfRange, "migrationCost", "a cost comparable to the others", text(migration));
  }
  for (int32_t g : q->gpu_id) {
    q->compute_cost.push_back(
        static_cast<uint32_t>(scaled(in.compute_cost_ns[static_cast<size_t>(g)], exponent)));
  }
  for (int32_t s = 0; s < in.sources; ++s) {
    for (int32_t g : q->gpu_id) {
      const size_t at = static_cast<size_t>(s) * static_cast<size_t>(in.gpus) + static_cast<size_t>(g);
      q->comm_cost.push_back(static_cast<uint32_t>(scaled(in.comm_cost_ns[at], exponent)));
    }
  }
  q->uniform_compute =
      std::all_of(q->compute_cost.begin(), q->compute_cost.end(), [&](uint32_t c) { return c == q->compute_cost[0]; });
  const auto q31 = [&](double w) { return static_cast<uint32_t>(std::llround(w / w_most * spec::kOneQ31)); };
  q->weights.load = q31(w_load);
  q->weights.comm_max = q31(in.weights.comm_max);
  q->weights.comm_total = q31(w_comm_total);
  q->weights.migration = scaled(migration_relative, exponent);
  q->cost_unit_ns = std::ldexp(1.0, -exponent);
  q->objective_unit_ns = w_most * q->cost_unit_ns;
}

}  // namespace

Quantised quantise(const ProblemInput& in) {
  check_shape(in);
  check_costs(in);
  Quantised q;
  q.layers = in.layers;
  q.sources = in.sources;
  q.experts = in.experts;
  q.all_gpus = in.gpus;
  q.slots = in.slots_per_gpu;
  q.nearest = in.replica_choice == ReplicaChoice::kNearest;
  q.allow_duplicates = in.allow_duplicates;
  q.tokens = in.tokens;
  q.migration_budget = in.migration_budget;
  list_live_gpus(in, &q);
  quantise_costs(in, &q);
  return q;
}

}  // namespace gimbal
