// See layer_rig.h.
#include "layer_rig.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "../spec/tables.h"
#include "shuffled_kernels.h"

namespace gimbal {
namespace test {

const std::vector<KernelSet>& kernel_sets() {
  static const std::vector<KernelSet> sets = [] {
    std::vector<KernelSet> all = {{"portable", &kernels_base()}};
#if defined(GIMBAL_X86_KERNELS)
    if (__builtin_cpu_supports("x86-64-v3")) all.push_back({"x86-64-v3", &kernels_v3()});
    if (__builtin_cpu_supports("x86-64-v4")) all.push_back({"x86-64-v4", &kernels_v4()});
#endif
    all.push_back({"shuffled team", &kernels_shuffled()});
    return all;
  }();
  return sets;
}

uint32_t most_frequent(const uint32_t* row, int32_t gpus) {
  std::map<uint32_t, int32_t> counts;
  for (int32_t g = 0; g < gpus; ++g) ++counts[row[g]];
  return std::max_element(counts.begin(), counts.end(), [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
}

CommPattern make_pattern(const Quantised& q, const ChooseBase& base_of) {
  CommPattern p;
  const auto cost = [&](int32_t s, int32_t g) { return q.comm_cost[static_cast<size_t>(s) * static_cast<size_t>(q.gpus) + static_cast<size_t>(g)]; };
  for (int32_t s = 0; s < q.sources; ++s) p.base.push_back(base_of(&q.comm_cost[static_cast<size_t>(s) * static_cast<size_t>(q.gpus)], q.gpus));
  p.first.push_back(0);
  for (int32_t g = 0; g < q.gpus; ++g) {
    for (int32_t s = 0; s < q.sources; ++s) {
      const uint32_t base = p.base[static_cast<size_t>(s)], c = cost(s, g);
      if (c == base) continue;
      p.source.push_back(s);
      p.below.push_back(c < base);
      p.magnitude.push_back(c < base ? base - c : c - base);
    }
    p.first.push_back(static_cast<int32_t>(p.source.size()));
  }
  return p;
}

namespace {

// Gives each array of a struct of pointers an allocation of its own, filled with a pattern. `pieces` are the stretches of
// memory that the struct was laid out in: a word that points into one of them is an array, which ends where the next begins.
template <class Views>
void give_each_its_own(Views* views, const std::vector<std::pair<char*, uint64_t>>& pieces, int32_t poison,
                       std::vector<std::vector<char>>* arrays) {
  static_assert(sizeof(Views) % sizeof(char*) == 0, "the struct is read word by word");
  std::vector<char*> words(sizeof(Views) / sizeof(char*));
  std::memcpy(words.data(), static_cast<const void*>(views), sizeof(Views));
  const auto is_array = [&](const char* word) {
    return std::any_of(pieces.begin(), pieces.end(),
                       [=](const auto& piece) { return word >= piece.first && word <= piece.first + piece.second; });
  };
  std::vector<char*> begins;
  for (const auto& [piece, bytes] : pieces) begins.push_back(piece + bytes);
  for (char* word : words) {
    if (is_array(word)) begins.push_back(word);
  }
  std::sort(begins.begin(), begins.end());
  for (char*& word : words) {
    if (!is_array(word)) continue;
    const auto end = std::upper_bound(begins.begin(), begins.end(), word);
    const bool last = std::any_of(pieces.begin(), pieces.end(), [=](const auto& p) { return word == p.first + p.second; });
    std::vector<char> array(last ? 0 : static_cast<size_t>(*end - word));
    for (size_t i = 0; i + sizeof(int32_t) <= array.size(); i += sizeof(int32_t)) {
      std::memcpy(array.data() + i, &poison, sizeof(int32_t));
    }
    arrays->push_back(std::move(array));
    word = arrays->back().data();
  }
  std::memcpy(static_cast<void*>(views), words.data(), sizeof(Views));
}

// Memory to lay arrays out in, 64-byte aligned; `pad` more bytes than asked for.
class Ground {
 public:
  Ground(uint64_t bytes, uint64_t pad) : memory_(bytes + pad + 64) {}
  char* data() { return memory_.data() + (64 - reinterpret_cast<uintptr_t>(memory_.data()) % 64) % 64; }

 private:
  std::vector<char> memory_;
};

}  // namespace

int32_t* LayerRig::take(size_t cells) {
  arrays_.emplace_back(cells, poison_);
  arrays_.back().shrink_to_fit();
  return arrays_.back().data();
}

std::vector<int32_t> LayerRig::scores(size_t cells) const {
  const spec::FineLayer& fine = tables_.fine;
  return std::vector<int32_t>(std::max(cells, team_scratch(fine.experts, fine.slots, spec::padded_gpus(fine.gpus))), poison_);
}

LayerRig::LayerRig(const CpuKernels& kernels, const ProblemInput& in, const Quantised& q, int32_t layer, int32_t poison)
    : kernels_(kernels), poison_(poison) {
  const size_t experts = static_cast<size_t>(q.experts), gpus = static_cast<size_t>(q.gpus);
  const size_t stride = static_cast<size_t>(spec::padded_gpus(q.gpus));
  const size_t sources = q.nearest ? static_cast<size_t>(q.sources) : 0;
  spec::FineLayer& fine = tables_.fine;
  fine.experts = q.experts;
  fine.gpus = q.gpus;
  fine.slots = q.slots;
  fine.sources = q.sources;
  fine.nearest = q.nearest;
  fine.tokens = q.tokens + static_cast<size_t>(layer) * static_cast<size_t>(q.sources) * experts;
  fine.compute_cost = q.compute_cost.data();
  fine.comm_cost = q.comm_cost.data();
  tables_.expert_tokens.assign(experts, poison);
  tables_.comm_fine.assign(gpus * experts, poison);

  const bool uniform = q.uniform_compute && !q.nearest;
  spec::SearchTables t;
  t.load = take(uniform ? experts : experts * stride);
  t.load_t = uniform ? t.load : take(gpus * experts);
  t.comm = take(experts * stride);
  t.comm_t = take(gpus * experts);
  t.source_load = take(sources * experts);
  t.source_comm = take(sources * experts);
  t.compute_factor = reinterpret_cast<uint32_t*>(take(q.nearest ? stride : 0));
  t.comm_factor = reinterpret_cast<uint32_t*>(take(sources * stride));
  t.distance = reinterpret_cast<uint32_t*>(take(sources * stride));
  std::vector<int64_t> wide(2 * experts, poison);
  const CommPattern pattern = make_pattern(q, most_frequent);
  kernels.fill_tables(q.weights, pattern.view(), uniform, t, tables_.expert_tokens.data(), tables_.comm_fine.data(),
                      wide.data(), scores().data(), &fine, &tables_.scale);

  spec::LayerView& v = tables_.view;
  v = spec::view_of(fine, t, tables_.scale, uniform, q.allow_duplicates);
  if (in.incumbent == nullptr) return;
  incumbent_ = read_incumbent(in, q, layer, tables_.expert_tokens.data());
  v.held = incumbent_.held.data();
  v.price = spec::to_search_price(q.weights.migration, tables_.scale.shift);
}

spec::FineTerms LayerRig::evaluate(const std::vector<int32_t>& placement, const uint8_t* held) const {
  const size_t gpus = static_cast<size_t>(tables_.fine.gpus), cells = gpus * static_cast<size_t>(tables_.fine.slots);
  std::vector<int32_t> ids(static_cast<size_t>(tables_.fine.experts) + 1 + cells, poison_);
  std::vector<int64_t> sums(2 * gpus, poison_);
  return kernels_.evaluate(tables_.fine, held, placement.data(), ids.data(), sums.data(), scores().data());
}

CandidateReading LayerRig::read_candidate(const Quantised& q, const std::vector<int32_t>& candidate) const {
  CandidateReading reading;
  reading.live.assign(static_cast<size_t>(q.gpus) * static_cast<size_t>(q.slots), poison_);
  std::vector<int32_t> replicas(static_cast<size_t>(q.experts), poison_);
  const spec::LiveGpus live_gpus{q.all_gpus, q.live_index.data()};
  reading.bad_slot = kernels_.read_candidate(tables_.fine, live_gpus, candidate.data(), reading.live.data(), replicas.data(),
                                             scores(candidate.size()).data());
  return reading;
}

int64_t LayerRig::bound(const spec::FineWeights& weights, int64_t migration, int32_t iterations) const {
  const int32_t stride = tables_.view.stride, experts = tables_.view.experts;
  spec::BoundScratch scratch;
  const uint64_t bytes = spec::lay_out_bound(stride, experts, nullptr, &scratch);
  Ground ground(bytes, 0);
  spec::lay_out_bound(stride, experts, ground.data(), &scratch);
  std::vector<std::vector<char>> arrays;
  give_each_its_own(&scratch, {{ground.data(), bytes}}, poison_, &arrays);
  return kernels_.bound(tables_.view, tables_.fine, weights, tables_.scale.shift, migration, iterations, scratch,
                        scores().data());
}

std::vector<int32_t> LayerRig::search_tables() const {
  std::vector<int32_t> all;
  for (const auto& array : arrays_) all.insert(all.end(), array.begin(), array.end());
  return all;
}

// Lays the walker out as a backend does, its two pieces apart from each other, then takes each array out of them.
WalkRig::WalkRig(const LayerRig& layer, const WalkOptions& options)
    : layer_(layer), options_(options), scores_(layer.scores()) {
  constexpr uint64_t kBetween = 64;
  const spec::LayerView& v = layer.view();
  const spec::WalkerBytes bytes = spec::lay_out_walker(v, options.frontier, nullptr, nullptr, &walker_);
  Ground ground(bytes.work + bytes.kept, kBetween);
  char* const work = ground.data();
  char* const kept = work + bytes.work + kBetween;
  spec::lay_out_walker(v, options.frontier, work, kept, &walker_);
  give_each_its_own(&walker_, {{work, bytes.work}, {kept, bytes.kept}}, options.poison, &arrays_);
}

bool WalkRig::walk(int64_t until, const std::atomic<bool>* cancel) {
  return layer_.kernels().walk(layer_.view(), walker_, options_.plan, options_.start, until, cancel, scores_.data(), &progress_);
}

std::vector<int32_t> WalkRig::transposed(const int32_t* expert) const {
  const spec::LayerView& v = layer_.view();
  std::vector<int32_t> placement;
  for (int32_t h = 0; h < v.gpus; ++h) {
    for (int32_t k = 0; k < v.slots; ++k) placement.push_back(expert[k * v.stride + h]);
  }
  return placement;
}

std::vector<std::vector<int32_t>> WalkRig::kept() const {
  if (walker_.frontier == 0) return {best()};
  const spec::LayerView& v = layer_.view();
  std::vector<std::vector<int32_t>> all;
  for (int32_t m = 0; m < walker_.frontier; ++m) {
    if (walker_.frontier_value[m] == INT64_MAX) continue;
    all.push_back(transposed(walker_.frontier_expert + int64_t{m} * v.slots * v.stride));
  }
  return all;
}

std::vector<int64_t> WalkRig::state_words() const {
  const spec::LayerView& v = layer_.view();
  const spec::Walker& w = walker_;
  std::vector<int64_t> words;
  const auto append = [&](const auto* from, int64_t count) { words.insert(words.end(), from, from + count); };
  const int64_t cells = int64_t{v.slots} * v.stride;
  for (const int32_t* array : {w.expert, w.load, w.comm, w.linear, w.best_expert}) append(array, cells);
  append(w.share, cells);
  for (const int32_t* array : {w.gpu_load, w.gpu_comm, w.gpu_linear, w.gpu_new}) append(array, v.stride);
  append(w.replicas, v.experts);
  append(w.copies, int64_t{v.experts} * v.stride);
  for (int32_t e = 0; e < v.experts; ++e) words.push_back(w.replicas[e] == 1 ? w.home[e] : -1);
  words.push_back(progress_.best_value);
  return words;
}

std::vector<int64_t> WalkRig::frontier_words() const {
  const spec::LayerView& v = layer_.view();
  const spec::Walker& w = walker_;
  std::vector<int64_t> words;
  for (int32_t m = 0; m < w.frontier; ++m) {
    words.push_back(w.frontier_value[m]);
    if (w.frontier_value[m] == INT64_MAX) continue;
    const int64_t cells = int64_t{v.slots} * v.stride;
    words.insert(words.end(), w.frontier_expert + m * cells, w.frontier_expert + (m + 1) * cells);
  }
  return words;
}

}  // namespace test
}  // namespace gimbal
