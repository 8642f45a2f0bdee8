#include "audit.h"

#include <algorithm>
#include <string>
#include <vector>

#include "errors.h"

namespace gimbal {
namespace {

[[noreturn]] void refuse(const char* field, int32_t layer, const std::string& expected, const std::string& received) {
  throw Error(ErrorCode::kInvalidInput, field, expected, received + " in layer " + std::to_string(layer));
}

// (expert, caller's GPU) pairs of the incumbent, with multiplicity.
std::vector<int32_t> incumbent_pairs(const ProblemInput& in, int32_t layer) {
  std::vector<int32_t> pairs(static_cast<size_t>(in.experts) * static_cast<size_t>(in.gpus), 0);
  if (in.incumbent == nullptr) return pairs;
  const int64_t width = int64_t{in.incumbent_gpus} * in.incumbent_slots_per_gpu;
  for (int64_t m = 0; m < width; ++m) {
    const int64_t g = m / in.incumbent_slots_per_gpu;
    const int32_t e = in.incumbent[width * layer + m];
    if (e >= 0 && g < in.gpus) ++pairs[static_cast<size_t>(e) * static_cast<size_t>(in.gpus) + static_cast<size_t>(g)];
  }
  return pairs;
}

}  // namespace

AuditedLayer audit_layer(const ProblemInput& in, const Quantised& q, int32_t layer, const int32_t* placement,
                         const char* field) {
  const size_t gpus = static_cast<size_t>(in.gpus);
  const std::vector<int32_t> before = incumbent_pairs(in, layer);
  std::vector<int32_t> copies(static_cast<size_t>(in.experts) * gpus, 0);
  std::vector<std::vector<int32_t>> hosts(static_cast<size_t>(in.experts));  // live GPU of each replica
  for (int32_t g = 0; g < in.gpus; ++g) {
    const int32_t live = q.live_index[static_cast<size_t>(g)];
    for (int32_t k = 0; k < in.slots_per_gpu; ++k) {
      const int32_t slot = g * in.slots_per_gpu + k;
      const int32_t e = placement[slot];
      const std::string where = "expert " + std::to_string(e) + " in slot " + std::to_string(slot);
      if (live < 0) {
        if (e != -1) refuse(field, layer, "-1 on the slots of a dead GPU", where);
        continue;
      }
      if (e < 0 || e >= in.experts) {
        refuse(field, layer, "expert ids from 0 to " + std::to_string(in.experts - 1), where);
      }
      const size_t pair = static_cast<size_t>(e) * gpus + static_cast<size_t>(g);
      ++copies[pair];
      if (!in.allow_duplicates && copies[pair] > std::max(1, before[pair])) {
        refuse(field, layer, "no new second replica of an expert on one GPU", where);
      }
      hosts[static_cast<size_t>(e)].push_back(live);
    }
  }
  AuditedLayer a;
  std::vector<int64_t> load(static_cast<size_t>(q.gpus), 0), comm(static_cast<size_t>(q.gpus), 0);
  std::vector<int64_t> sent(static_cast<size_t>(in.sources), 0);
  std::vector<int64_t> cost(static_cast<size_t>(q.gpus) * static_cast<size_t>(q.slots));  // of each replica of an expert
  const uint32_t* tokens = in.tokens + static_cast<size_t>(layer) * static_cast<size_t>(in.sources) * static_cast<size_t>(in.experts);
  const auto tokens_of = [&](int32_t s, int32_t e) {
    return static_cast<int64_t>(tokens[static_cast<size_t>(s) * static_cast<size_t>(in.experts) + static_cast<size_t>(e)]);
  };
  const auto distance = [&](int32_t s, int32_t live) {
    return static_cast<int64_t>(q.comm_cost[static_cast<size_t>(s) * static_cast<size_t>(q.gpus) + static_cast<size_t>(live)]);
  };
  for (int32_t e = 0; e < in.experts; ++e) {
    const auto& where = hosts[static_cast<size_t>(e)];
    if (where.empty()) refuse(field, layer, "a replica of every expert", "none of expert " + std::to_string(e));
    const int64_t n = static_cast<int64_t>(where.size());
    if (!q.nearest) {
      int64_t arriving = 0;
      std::fill_n(cost.begin(), n, 0);
      for (int32_t s = 0; s < in.sources; ++s) {
        const int64_t t = tokens_of(s, e);
        int64_t paths = 0;
        arriving += t;
        for (int64_t i = 0; i < n; ++i) {
          const int64_t d = distance(s, where[static_cast<size_t>(i)]);
          cost[static_cast<size_t>(i)] += t * d;
          paths += d;
        }
        // t * paths / n, in two parts so that the product stays in 64 bits.
        sent[static_cast<size_t>(s)] += t * (paths / n) + t * (paths % n) / n;
      }
      for (int64_t i = 0; i < n; ++i) {
        const size_t g = static_cast<size_t>(where[static_cast<size_t>(i)]);
        load[g] += arriving * q.compute_cost[g] / n;
        comm[g] += cost[static_cast<size_t>(i)] / n;
      }
      continue;
    }
    for (int32_t s = 0; s < in.sources; ++s) {
      int64_t least = INT64_MAX, ties = 0;
      for (int32_t g : where) least = std::min(least, distance(s, g));
      for (int32_t g : where) ties += distance(s, g) == least;
      for (int32_t g : where) {
        if (distance(s, g) != least) continue;
        load[static_cast<size_t>(g)] += tokens_of(s, e) * q.compute_cost[static_cast<size_t>(g)] / ties;
        comm[static_cast<size_t>(g)] += tokens_of(s, e) * least / ties;
      }
      sent[static_cast<size_t>(s)] += tokens_of(s, e) * least;
    }
  }
  a.load_max = *std::max_element(load.begin(), load.end());
  a.comm_max = *std::max_element(comm.begin(), comm.end());
  for (int64_t c : comm) a.comm_total += c;
  a.source_max = *std::max_element(sent.begin(), sent.end());
  for (size_t pair = 0; in.incumbent != nullptr && pair < copies.size(); ++pair) {
    a.migrations += copies[pair] > 0 && before[pair] == 0;
  }
  // The weighted sum, each product rounded down to a unit of J.
  const auto weigh = [](int64_t term, uint32_t weight) {
    return static_cast<int64_t>((static_cast<unsigned __int128>(term) * weight) >> 31);
  };
  a.objective = weigh(a.load_max, q.weights.load) + weigh(a.comm_max, q.weights.comm_max) +
                weigh(a.comm_total, q.weights.comm_total) + a.migrations * q.weights.migration;
  return a;
}

}  // namespace gimbal
