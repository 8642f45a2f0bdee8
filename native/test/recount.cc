// See recount.h.
#include "recount.h"

#include <algorithm>

namespace gimbal {
namespace test {
namespace {

int64_t times_q31(int64_t x, uint64_t q) { return static_cast<int64_t>(static_cast<unsigned __int128>(x) * q >> 31); }
uint64_t share_of(int64_t replicas) { return (uint64_t{1} << 31) / static_cast<uint64_t>(replicas); }

// What expert e costs GPU h in all, where each source goes to its nearest replicas.
void nearest_part(const spec::LayerView& v, const std::vector<int32_t>& copies, int32_t e, int32_t h, int64_t* load, int64_t* comm) {
  *load = *comm = 0;
  const auto copies_on = [&](int32_t g) { return copies[static_cast<size_t>(e) * static_cast<size_t>(v.stride) + static_cast<size_t>(g)]; };
  for (int32_t s = 0; s < v.sources; ++s) {
    const uint32_t* distance = v.distance + int64_t{s} * v.stride;
    uint32_t least = UINT32_MAX;
    for (int32_t g = 0; g < v.gpus; ++g) {
      if (copies_on(g) > 0) least = std::min(least, distance[g]);
    }
    if (distance[h] != least) continue;
    int64_t ties = 0;
    for (int32_t g = 0; g < v.gpus; ++g) {
      if (distance[g] == least) ties += copies_on(g);
    }
    const int64_t at = int64_t{s} * v.experts + e;
    const int64_t whole_load = times_q31(v.source_load[at], v.compute_factor[h]);
    const int64_t whole_comm = times_q31(v.source_comm[at], v.comm_factor[int64_t{s} * v.stride + h]);
    *load += copies_on(h) * times_q31(whole_load, share_of(ties));
    *comm += copies_on(h) * times_q31(whole_comm, share_of(ties));
  }
}

}  // namespace

Recount recount(const spec::LayerView& v, const int32_t* expert) {
  const size_t stride = static_cast<size_t>(v.stride), experts = static_cast<size_t>(v.experts);
  const size_t cells = static_cast<size_t>(v.slots) * stride;
  Recount r;
  r.copies.assign(experts * stride, 0);
  r.replicas.assign(experts, 0);
  for (auto* cell : {&r.load, &r.comm, &r.part}) cell->assign(cells, 0);
  for (auto* gpu : {&r.gpu_load, &r.gpu_comm, &r.gpu_linear, &r.gpu_new}) gpu->assign(stride, 0);
  const auto cell = [&](int32_t k, int32_t h) { return static_cast<size_t>(k) * stride + static_cast<size_t>(h); };
  for (int32_t h = 0; h < v.gpus; ++h) {
    for (int32_t k = 0; k < v.slots; ++k) {
      ++r.copies[static_cast<size_t>(expert[cell(k, h)]) * stride + static_cast<size_t>(h)];
      ++r.replicas[static_cast<size_t>(expert[cell(k, h)])];
    }
  }
  int64_t load_max = 0, comm_max = 0, linear = 0;
  for (int32_t h = 0; h < v.gpus; ++h) {
    const size_t gpu = static_cast<size_t>(h);
    for (int32_t k = 0; k < v.slots; ++k) {
      const size_t j = cell(k, h);
      const int32_t e = expert[j];
      const size_t pair = static_cast<size_t>(e) * stride + gpu;
      if (v.nearest && r.replicas[static_cast<size_t>(e)] > 1) {
        nearest_part(v, r.copies, e, h, &r.load[j], &r.comm[j]);
        r.load[j] /= r.copies[pair];
        r.comm[j] /= r.copies[pair];
      } else {
        const uint64_t share = share_of(r.replicas[static_cast<size_t>(e)]);
        r.load[j] = times_q31(v.uniform_compute ? v.load[e] : v.load[pair], share);
        r.comm[j] = times_q31(v.comm[pair], share);
      }
      r.part[j] = times_q31(r.comm[j], v.total_scale);
      r.gpu_load[gpu] += r.load[j];
      r.gpu_comm[gpu] += r.comm[j];
      r.gpu_linear[gpu] += r.part[j];
      r.gpu_new[gpu] += v.held != nullptr && v.held[pair] == 0;
    }
    load_max = std::max(load_max, r.gpu_load[gpu]);
    comm_max = std::max(comm_max, r.gpu_comm[gpu]);
    linear += r.gpu_linear[gpu];
    r.new_slots += r.gpu_new[gpu];
  }
  const int64_t comm_term = v.comm_term == spec::CommTerm::kAbsent ? 0
                            : v.comm_term == spec::CommTerm::kUnit ? comm_max
                                                                   : times_q31(comm_max, v.max_scale);
  r.value = load_max + comm_term + linear + r.new_slots * v.price;
  return r;
}

Recount recount_placement(const spec::LayerView& v, const std::vector<int32_t>& placement) {
  std::vector<int32_t> expert(static_cast<size_t>(v.slots) * static_cast<size_t>(v.stride), 0);
  for (int32_t h = 0; h < v.gpus; ++h) {
    for (int32_t k = 0; k < v.slots; ++k) {
      expert[static_cast<size_t>(k * v.stride + h)] = placement[static_cast<size_t>(h * v.slots + k)];
    }
  }
  return recount(v, expert.data());
}

std::vector<std::string> broken_constraints(const spec::LayerView& v, const int32_t* expert) {
  std::vector<std::string> broken;
  for (int32_t h = 0; h < v.gpus; ++h) {
    for (int32_t k = 0; k < v.slots; ++k) {
      const int32_t e = expert[k * v.stride + h];
      if (e < 0 || e >= v.experts) {
        broken.push_back("slot (" + std::to_string(k) + ", " + std::to_string(h) + ") holds " + std::to_string(e));
      }
    }
  }
  if (!broken.empty()) return broken;
  const Recount r = recount(v, expert);
  for (int32_t e = 0; e < v.experts; ++e) {
    if (r.replicas[static_cast<size_t>(e)] == 0) broken.push_back("no replica of expert " + std::to_string(e));
    for (int32_t h = 0; h < v.gpus && !v.allow_duplicates; ++h) {
      const int32_t copies = r.copies[static_cast<size_t>(e * v.stride + h)];
      const int32_t allowed = v.held == nullptr ? 1 : std::max<int32_t>(1, v.held[e * v.stride + h]);
      if (copies > allowed) broken.push_back(std::to_string(copies) + " copies of expert " + std::to_string(e) + " on GPU " + std::to_string(h));
    }
  }
  return broken;
}

}  // namespace test
}  // namespace gimbal
