// See instance.h.
#include "instance.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace gimbal {
namespace test {
namespace {

void draw_shape(Random& random, const DrawLimits& limits, ProblemInput* in) {
  in->layers = random.between(1, limits.layers);
  in->sources = random.between(1, limits.sources);
  in->allow_duplicates = random.chance(0.2);
  for (;;) {
    in->gpus = random.chance(0.1) ? 1 : random.between(1, limits.gpus);
    in->slots_per_gpu = random.chance(0.15) ? 1 : random.between(1, limits.slots);
    const int32_t cells = in->gpus * in->slots_per_gpu;
    in->experts = random.chance(0.15) ? cells : random.chance(0.1) ? in->slots_per_gpu : random.between(1, limits.experts);
    in->dead_gpus.clear();
    for (int32_t g = 0; g < in->gpus; ++g) {
      if (random.chance(0.03)) in->dead_gpus.push_back(g);
    }
    const int32_t live = in->gpus - static_cast<int32_t>(in->dead_gpus.size());
    if (in->experts > limits.experts || live * in->slots_per_gpu < in->experts) continue;
    if (!in->allow_duplicates && in->slots_per_gpu > in->experts) continue;
    return;
  }
}

void draw_tokens(Random& random, Instance* out) {
  const ProblemInput& in = out->input;
  const size_t count = static_cast<size_t>(in.layers) * static_cast<size_t>(in.sources) * static_cast<size_t>(in.experts);
  out->tokens.assign(count, 0);
  const int32_t kind = random.below(8);
  std::vector<double> popularity(static_cast<size_t>(in.experts));
  for (double& p : popularity) p = std::exp(3.0 * random.uniform());
  for (size_t i = 0; i < count; ++i) {
    const double favour = popularity[i % static_cast<size_t>(in.experts)];
    uint32_t& t = out->tokens[i];
    if (kind == 0) t = 1000;                                              // ties everywhere
    else if (kind == 1) t = random.chance(0.9) ? 0 : static_cast<uint32_t>(random.between(1, 9));
    else if (kind == 2) t = static_cast<uint32_t>(random.any_magnitude(32));
    else t = static_cast<uint32_t>(100.0 * favour * (0.5 + random.uniform()));
  }
  if (random.chance(0.15)) {  // a layer without any traffic
    const size_t per_layer = count / static_cast<size_t>(in.layers);
    std::fill_n(out->tokens.begin() + static_cast<int64_t>(per_layer) * random.below(in.layers), per_layer, 0u);
  }
}

void draw_costs(Random& random, ProblemInput* in) {
  const bool equal = random.chance(0.5);
  for (int32_t g = 0; g < in->gpus; ++g) in->compute_cost_ns.push_back(equal ? 120.0 : 60.0 + 100.0 * random.uniform());
  if (random.chance(0.1)) in->compute_cost_ns[0] = 0.0;
  const int32_t kind = random.below(5);
  const int32_t per_node = std::max(1, in->gpus / random.between(1, 4));
  for (int32_t s = 0; s < in->sources; ++s) {
    for (int32_t g = 0; g < in->gpus; ++g) {
      const int32_t home = s % in->gpus;
      double cost = g == home ? 0.0 : g / per_node == home / per_node ? 40.0 : 210.5;
      if (kind == 0) cost = 0.0;                            // free communication
      if (kind == 1) cost = 300.0 * random.uniform();       // no two costs alike
      if (kind == 2) cost = random.between(0, 2) * 50.0;    // many ties between replicas
      in->comm_cost_ns.push_back(cost);
    }
  }
  switch (random.below(8)) {
    case 0: in->weights = {1.0, 0.0, 0.0, 1.0}; break;
    case 1: in->weights = {0.0, 1.0, 0.5, 0.5}; break;
    case 2: in->weights = {1.0, 0.05, 0.7 * in->gpus, 1.0}; break;  // the total outweighs the maximum
    case 3: in->weights = {0.0, 0.0, 0.0, 1.0}; break;
    case 4: in->weights = {1.0, 0.0, 2.0, 0.0}; break;
    default: break;
  }
}

void draw_incumbent(Random& random, const DrawLimits& limits, Instance* out) {
  ProblemInput& in = out->input;
  if (!limits.incumbents || random.chance(0.4)) return;
  const bool same_shape = random.chance(0.5);
  in.incumbent_gpus = same_shape ? in.gpus : std::max(1, in.gpus + random.between(-2, 2));
  in.incumbent_slots_per_gpu = same_shape ? in.slots_per_gpu : std::max(1, in.slots_per_gpu + random.between(-1, 2));
  const size_t width = static_cast<size_t>(in.incumbent_gpus) * static_cast<size_t>(in.incumbent_slots_per_gpu);
  const bool wild = random.chance(0.4);  // duplicates, empty slots and missing experts
  for (int32_t l = 0; l < in.layers; ++l) {
    std::vector<int32_t> row(width);
    for (size_t i = 0; i < width; ++i) {
      row[i] = wild ? random.between(-1, in.experts - 1) : static_cast<int32_t>(i) % in.experts;
    }
    if (!wild && random.chance(0.5)) random.shuffle(&row);
    out->incumbent.insert(out->incumbent.end(), row.begin(), row.end());
  }
  in.migration_cost_ns = random.chance(0.3) ? 0.0 : 5000.0 * random.uniform();
  if (limits.budgets && random.chance(0.5)) {
    in.migration_budget = random.below(in.layers * in.gpus * in.slots_per_gpu + 2);
  }
}

bool may_hold(const ProblemInput& in, int32_t layer, int32_t gpu, int32_t e, int32_t copies) {
  if (copies < 1 || in.allow_duplicates) return true;
  if (in.incumbent == nullptr || gpu >= in.incumbent_gpus) return false;
  const int64_t width = int64_t{in.incumbent_gpus} * in.incumbent_slots_per_gpu;
  const int32_t* row = in.incumbent + width * layer + int64_t{gpu} * in.incumbent_slots_per_gpu;
  return copies < std::count(row, row + in.incumbent_slots_per_gpu, e);
}

}  // namespace

std::unique_ptr<Instance> draw_instance(Random& random, const DrawLimits& limits) {
  auto out = std::make_unique<Instance>();
  draw_shape(random, limits, &out->input);
  draw_tokens(random, out.get());
  draw_costs(random, &out->input);
  out->input.replica_choice = random.chance(0.35) ? ReplicaChoice::kNearest : ReplicaChoice::kEven;
  draw_incumbent(random, limits, out.get());
  return out;
}

std::string describe(const Instance& instance) {
  const ProblemInput& in = instance.input;
  std::string s = std::to_string(in.layers) + " layers, " + std::to_string(in.sources) + " sources, " +
                  std::to_string(in.experts) + " experts, " + std::to_string(in.gpus) + " x " +
                  std::to_string(in.slots_per_gpu) + " slots";
  if (!in.dead_gpus.empty()) s += ", " + std::to_string(in.dead_gpus.size()) + " dead";
  if (in.replica_choice == ReplicaChoice::kNearest) s += ", nearest";
  if (in.allow_duplicates) s += ", duplicates allowed";
  if (!instance.incumbent.empty()) {
    s += ", incumbent " + std::to_string(in.incumbent_gpus) + " x " + std::to_string(in.incumbent_slots_per_gpu);
  }
  if (in.migration_budget >= 0) s += ", budget " + std::to_string(in.migration_budget);
  return s;
}

std::vector<int32_t> draw_placement(Random& random, const ProblemInput& in, const Quantised& q) {
  const size_t slots = static_cast<size_t>(q.slots);
  std::vector<int32_t> placement(static_cast<size_t>(q.all_gpus) * slots, -1);
  std::vector<size_t> order;  // live slots
  for (int32_t g : q.gpu_id) {
    for (size_t k = 0; k < slots; ++k) order.push_back(static_cast<size_t>(g) * slots + k);
  }
  random.shuffle(&order);
  for (size_t n = 0; n < order.size(); ++n) {
    const size_t slot = order[n];
    const auto row = placement.begin() + static_cast<int64_t>(slot / slots * slots);
    int32_t e = n < static_cast<size_t>(in.experts) ? static_cast<int32_t>(n) : random.below(in.experts);
    if (!in.allow_duplicates && n >= static_cast<size_t>(in.experts)) {
      while (std::find(row, row + static_cast<int64_t>(slots), e) != row + static_cast<int64_t>(slots)) e = (e + 1) % in.experts;
    }
    placement[slot] = e;
  }
  return placement;
}

std::vector<int32_t> live_part(const Quantised& q, const int32_t* placement) {
  std::vector<int32_t> live;
  for (int32_t g : q.gpu_id) live.insert(live.end(), placement + int64_t{g} * q.slots, placement + int64_t{g + 1} * q.slots);
  return live;
}

std::vector<int32_t> over_all_gpus(const Quantised& q, const int32_t* live) {
  std::vector<int32_t> all(static_cast<size_t>(q.all_gpus) * static_cast<size_t>(q.slots), -1);
  for (int32_t g = 0; g < q.gpus; ++g) {
    std::copy_n(live + int64_t{g} * q.slots, q.slots, all.begin() + int64_t{q.gpu_id[static_cast<size_t>(g)]} * q.slots);
  }
  return all;
}

std::vector<std::vector<int32_t>> all_placements(const ProblemInput& in, const Quantised& q, int32_t layer) {
  std::vector<std::vector<int32_t>> found;
  const int32_t cells = q.gpus * q.slots;
  std::vector<int32_t> placement(static_cast<size_t>(cells));
  std::vector<int32_t> replicas(static_cast<size_t>(q.experts), 0);
  const std::function<void(int32_t)> fill = [&](int32_t m) {
    if (m == cells) {
      if (std::find(replicas.begin(), replicas.end(), 0) == replicas.end()) found.push_back(placement);
      return;
    }
    const int32_t g = m / q.slots, k = m % q.slots;
    const auto row = placement.begin() + int64_t{g} * q.slots;
    for (int32_t e = k == 0 ? 0 : row[k - 1]; e < q.experts; ++e) {
      const int32_t copies = static_cast<int32_t>(std::count(row, row + k, e));
      if (!may_hold(in, layer, q.gpu_id[static_cast<size_t>(g)], e, copies)) continue;
      placement[static_cast<size_t>(m)] = e;
      ++replicas[static_cast<size_t>(e)];
      fill(m + 1);
      --replicas[static_cast<size_t>(e)];
    }
  };
  fill(0);
  return found;
}

}  // namespace test
}  // namespace gimbal
