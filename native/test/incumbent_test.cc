// The placement in force, on today's GPUs: what it keeps, and that it forces no more new pairs than any plan needs.
#include <doctest/doctest.h>

#include <algorithm>
#include <memory>

#include "../model/audit.h"
#include "../model/errors.h"
#include "../model/incumbent.h"
#include "instance.h"

using namespace gimbal;
using namespace gimbal::test;

namespace {

std::unique_ptr<Instance> make(int32_t experts, int32_t gpus, int32_t slots, int32_t before_gpus, int32_t before_slots,
                               std::vector<int32_t> incumbent, std::vector<int32_t> dead = {}) {
  auto out = std::make_unique<Instance>();
  ProblemInput& in = out->input;
  in.layers = 1;
  in.sources = 1;
  in.experts = experts;
  in.gpus = gpus;
  in.slots_per_gpu = slots;
  for (int32_t e = 0; e < experts; ++e) out->tokens.push_back(static_cast<uint32_t>(100 + e));
  in.compute_cost_ns.assign(static_cast<size_t>(gpus), 1.0);
  in.comm_cost_ns.assign(static_cast<size_t>(gpus), 1.0);
  in.incumbent_gpus = before_gpus;
  in.incumbent_slots_per_gpu = before_slots;
  in.dead_gpus = std::move(dead);
  out->incumbent = std::move(incumbent);
  return out;
}

Incumbent read(Instance* instance, int32_t layer = 0) {
  const ProblemInput& in = instance->problem();
  const Quantised q = quantise(in);
  std::vector<int64_t> heat(static_cast<size_t>(in.experts), 0);
  for (int32_t s = 0; s < in.sources; ++s) {
    for (int32_t e = 0; e < in.experts; ++e) {
      heat[static_cast<size_t>(e)] += in.tokens[static_cast<size_t>((layer * in.sources + s) * in.experts + e)];
    }
  }
  return read_incumbent(in, q, layer, heat.data());
}

// The same experts on every GPU; their order inside one does not matter.
std::vector<int32_t> sorted_by_gpu(std::vector<int32_t> placement, int32_t slots) {
  for (auto row = placement.begin(); row != placement.end(); row += slots) std::sort(row, row + slots);
  return placement;
}

// The start is a valid placement, and has as many new pairs as it says.
void check_start(Instance* instance, const Incumbent& incumbent, int32_t layer = 0) {
  const ProblemInput& in = instance->problem();
  const Quantised q = quantise(in);
  const AuditedLayer audit = audit_layer(in, q, layer, over_all_gpus(q, incumbent.start.data()).data(), "start");
  CHECK(audit.migrations == incumbent.forced);
}

}  // namespace

TEST_CASE("incumbent: the same shape is kept as it is") {
  auto instance = make(4, 2, 3, 2, 3, {0, 1, 2, 3, 0, 2});
  const Incumbent i = read(instance.get());
  CHECK(i.forced == 0);
  CHECK(sorted_by_gpu(i.start, 3) == std::vector<int32_t>{0, 1, 2, 0, 2, 3});
  CHECK(i.held[0 * 16 + 0] == 1);
  CHECK(i.held[0 * 16 + 1] == 1);
  CHECK(i.held[1 * 16 + 1] == 0);
}

TEST_CASE("incumbent: duplicates stay") {
  auto instance = make(3, 2, 2, 2, 2, {0, 0, 1, 2});
  const Incumbent i = read(instance.get());
  CHECK(i.forced == 0);
  CHECK(i.held[0] == 2);
  CHECK(sorted_by_gpu(i.start, 2) == std::vector<int32_t>{0, 0, 1, 2});
  check_start(instance.get(), i);
}

TEST_CASE("incumbent: a dead GPU's experts come back where they are missed least") {
  // GPU 1 held experts 2 and 3; only 2 lives elsewhere too.
  auto instance = make(4, 3, 2, 3, 2, {0, 1, 2, 3, 2, 0}, {1});
  const Incumbent i = read(instance.get());
  CHECK(i.forced == 1);
  CHECK(std::count(i.start.begin(), i.start.end(), 3) == 1);
  check_start(instance.get(), i);
}

TEST_CASE("incumbent: new GPUs and new slots are filled, each by one forced pair") {
  auto more_gpus = make(4, 3, 2, 2, 2, {0, 1, 2, 3});
  Incumbent i = read(more_gpus.get());
  CHECK(i.forced == 2);
  check_start(more_gpus.get(), i);
  auto more_slots = make(4, 2, 3, 2, 2, {0, 1, 2, 3});
  i = read(more_slots.get());
  CHECK(i.forced == 2);
  check_start(more_slots.get(), i);
  auto empty_slots = make(4, 2, 3, 2, 3, {0, 1, -1, 2, 3, -1});
  i = read(empty_slots.get());
  CHECK(i.forced == 2);
  check_start(empty_slots.get(), i);
}

TEST_CASE("incumbent: fewer slots or GPUs drop what lives elsewhere first") {
  auto fewer_slots = make(4, 2, 2, 2, 3, {0, 1, 2, 3, 0, 2});
  Incumbent i = read(fewer_slots.get());
  CHECK(i.forced == 0);
  check_start(fewer_slots.get(), i);
  auto fewer_gpus = make(4, 2, 2, 3, 2, {0, 1, 2, 0, 3, 1});
  i = read(fewer_gpus.get());
  CHECK(i.forced == 1);  // expert 3 lived on the GPU that left
  check_start(fewer_gpus.get(), i);
}

TEST_CASE("incumbent: forced pairs are the fewest that any valid plan needs") {
  int32_t some_forced = 0, checked = 0;
  DrawLimits tiny;
  tiny.layers = 2;
  tiny.sources = 1;
  tiny.experts = 6;
  tiny.gpus = 4;
  tiny.slots = 3;
  for (uint64_t stream = 0; stream < 600; ++stream) {
    Random random(stream + 4000);
    const auto instance = draw_instance(random, tiny);
    if (instance->incumbent.empty()) continue;
    INFO("seed " << base_seed() << ", stream " << stream << ": " << describe(*instance));
    const ProblemInput& in = instance->problem();
    const Quantised q = quantise(in);
    for (int32_t layer = 0; layer < q.layers; ++layer) {
      const Incumbent i = read(instance.get(), layer);
      check_start(instance.get(), i, layer);
      if (q.gpus * q.slots > 8) continue;
      int64_t fewest = INT64_MAX;
      for (const std::vector<int32_t>& placement : all_placements(in, q, layer)) {
        const std::vector<int32_t> all = over_all_gpus(q, placement.data());
        fewest = std::min(fewest, audit_layer(in, q, layer, all.data(), "p").migrations);
      }
      ++checked;
      some_forced += fewest > 0;
      CHECK(i.forced == fewest);
    }
  }
  CHECK(checked > 100);
  CHECK(some_forced > 30);
}

TEST_CASE("incumbent: a slot that holds no expert of the model is refused by place") {
  for (int32_t bad : {4, -2, INT32_MAX, INT32_MIN}) {
    auto instance = make(4, 2, 2, 2, 2, {0, 1, 2, bad});
    try {
      check_incumbent(instance->problem());
      FAIL("accepted");
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kInvalidInput);
      CHECK(error.field() == "incumbent");
      CHECK(error.received() == std::to_string(bad) + " in layer 0, slot 3");
    }
  }
  auto shapeless = make(4, 2, 2, 0, 2, {0, 1, 2, 3});
  CHECK_THROWS_AS(check_incumbent(shapeless->problem()), Error);
}
