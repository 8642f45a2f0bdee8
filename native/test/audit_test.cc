// The audit is the last gate: it must agree with the solver's own evaluation on good placements and refuse each broken
// constraint by name.
#include <doctest/doctest.h>

#include <memory>

#include "../model/audit.h"
#include "../model/errors.h"
#include "../solver/solve.h"
#include "../spec/cost.h"
#include "instance.h"
#include "layer_rig.h"

using namespace gimbal;
using namespace gimbal::test;

namespace {

// 1 layer, 2 sources, 3 experts, 3 GPUs x 2 slots, GPU 1 dead, an incumbent with a duplicate of expert 2 on GPU 2.
std::unique_ptr<Instance> fixture() {
  auto out = std::make_unique<Instance>();
  ProblemInput& in = out->input;
  in.layers = 1;
  in.sources = 2;
  in.experts = 3;
  in.gpus = 3;
  in.slots_per_gpu = 2;
  out->tokens = {10, 20, 30, 4, 8, 2};
  in.compute_cost_ns = {1.0, 1.0, 2.0};
  in.comm_cost_ns = {0.0, 5.0, 5.0, 7.0, 7.0, 0.0};
  in.weights = {1.0, 0.5, 0.0, 1.0};
  in.migration_cost_ns = 4.0;
  in.dead_gpus = {1};
  out->incumbent = {0, 1, 0, 1, 2, 2};
  in.incumbent_gpus = 3;
  in.incumbent_slots_per_gpu = 2;
  return out;
}

std::string refusal(const std::vector<int32_t>& placement, bool with_incumbent = true) {
  auto instance = fixture();
  if (!with_incumbent) instance->incumbent.clear();
  const ProblemInput& in = instance->problem();
  try {
    audit_layer(in, quantise(in), 0, placement.data(), "thePlacement");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kInvalidInput);
    CHECK(error.field() == "thePlacement");
    return error.what();
  }
  return "accepted";
}

bool mentions(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("audit: a hand-worked layer") {
  auto instance = fixture();
  const ProblemInput& in = instance->problem();
  const Quantised q = quantise(in);
  const auto ns = [&](int64_t units) { return static_cast<double>(units) * q.cost_unit_ns; };
  const std::vector<int32_t> placement = {0, 1, -1, -1, 2, 0};
  const AuditedLayer even = audit_layer(in, q, 0, placement.data(), "p");
  CHECK(ns(even.load_max) == 2 * (32 + 7));            // GPU 2: experts 2 and half of 0
  CHECK(ns(even.comm_max) == 5 * (30 + 5));            // source 0 to GPU 2
  CHECK(ns(even.comm_total) == 175 + 7 * (2 + 8));
  CHECK(ns(even.source_max) == 175);
  CHECK(even.migrations == 1);                          // (0, GPU 2)
  CHECK(static_cast<double>(even.objective) * q.objective_unit_ns == 78 + 87.5 + 4);
  instance->input.replica_choice = ReplicaChoice::kNearest;
  const AuditedLayer near = audit_layer(instance->problem(), quantise(instance->problem()), 0, placement.data(), "p");
  CHECK(ns(near.load_max) == 2 * (32 + 4));
  CHECK(ns(near.comm_max) == 150);
  CHECK(ns(near.comm_total) == 150 + 7 * 8);
}

TEST_CASE("audit: refuses each broken constraint by name") {
  CHECK(refusal({0, 1, -1, -1, 2, 0}) == "accepted");
  CHECK(mentions(refusal({0, 1, 2, -1, 2, 0}), "expected -1 on the slots of a dead GPU"));
  CHECK(mentions(refusal({0, 1, 2, -1, 2, 0}), "expert 2 in slot 2 in layer 0"));
  CHECK(mentions(refusal({0, 1, -1, -1, 2, 3}), "expected expert ids from 0 to 2 but received expert 3 in slot 5"));
  CHECK(mentions(refusal({0, -1, -1, -1, 2, 1}), "received expert -1 in slot 1"));
  CHECK(mentions(refusal({0, 0, -1, -1, 1, 2}), "no new second replica of an expert on one GPU"));
  CHECK(mentions(refusal({0, 1, -1, -1, 0, 1}), "expected a replica of every expert but received none of expert 2"));
  // The incumbent's duplicate may stay where it is, and nowhere else.
  CHECK(refusal({0, 1, -1, -1, 2, 2}) == "accepted");
  CHECK(mentions(refusal({0, 1, -1, -1, 2, 2}, false), "second replica"));
}

TEST_CASE("audit: agrees with the solver's evaluation on random placements") {
  int32_t nearest = 0, with_migrations = 0;
  for (uint64_t stream = 0; stream < 300; ++stream) {
    Random random(stream + 1200);
    const auto instance = draw_instance(random);
    INFO("seed " << base_seed() << ", stream " << stream << ": " << describe(*instance));
    const ProblemInput& in = instance->problem();
    const Quantised q = quantise(in);
    Workspace workspace;
    SolveOptions options;
    options.threads = 1;
    std::vector<int32_t> candidate;
    for (int32_t layer = 0; layer < q.layers; ++layer) {
      const std::vector<int32_t> row = draw_placement(random, in, q);
      candidate.insert(candidate.end(), row.begin(), row.end());
    }
    const Evaluation evaluation = evaluate_placements(in, candidate.data(), 1, options, workspace);
    for (int32_t layer = 0; layer < q.layers; ++layer) {
      const int32_t* row = candidate.data() + int64_t{layer} * q.all_gpus * q.slots;
      const AuditedLayer audit = audit_layer(in, q, layer, row, "p");
      const LayerRig rig(kernels_base(), in, q, layer);
      const spec::FineTerms terms = rig.evaluate(live_part(q, row), rig.view().held);
      REQUIRE(terms.migrations == audit.migrations);
      REQUIRE(terms.load_max == audit.load_max);
      REQUIRE(terms.comm_max == audit.comm_max);
      REQUIRE(terms.comm_total == audit.comm_total);
      REQUIRE(spec::fine_objective(q.weights, terms) == audit.objective);
      const size_t at = static_cast<size_t>(layer);
      REQUIRE(evaluation.load_max_ns[at] == static_cast<double>(audit.load_max) * q.cost_unit_ns);
      REQUIRE(evaluation.comm_max_ns[at] == static_cast<double>(audit.comm_max) * q.cost_unit_ns);
      REQUIRE(evaluation.comm_total_ns[at] == static_cast<double>(audit.comm_total) * q.cost_unit_ns);
      REQUIRE(evaluation.migrations[at] == static_cast<double>(audit.migrations));
      REQUIRE(evaluation.objective_ns[at] == static_cast<double>(audit.objective) * q.objective_unit_ns);
      nearest += q.nearest;
      with_migrations += audit.migrations > 0;
    }
  }
  CHECK(nearest > 60);
  CHECK(with_migrations > 60);
}

TEST_CASE("audit: the busiest sender is the tokens' own sum") {
  for (uint64_t stream = 0; stream < 60; ++stream) {
    Random random(stream + 1600);
    const auto instance = draw_instance(random);
    const ProblemInput& in = instance->problem();
    const Quantised q = quantise(in);
    const std::vector<int32_t> placement = draw_placement(random, in, q);
    const AuditedLayer audit = audit_layer(in, q, 0, placement.data(), "p");
    double most = 0;
    for (int32_t s = 0; s < in.sources; ++s) {
      double sent = 0;
      for (int32_t e = 0; e < in.experts; ++e) {
        std::vector<double> costs;
        for (size_t slot = 0; slot < placement.size(); ++slot) {
          if (placement[slot] == e) costs.push_back(in.comm_cost_ns[static_cast<size_t>(s * in.gpus) + slot / static_cast<size_t>(q.slots)]);
        }
        double mean = 0, least = costs[0];
        for (double c : costs) {
          mean += c / static_cast<double>(costs.size());
          least = std::min(least, c);
        }
        sent += instance->tokens[static_cast<size_t>(s * in.experts + e)] * (q.nearest ? least : mean);
      }
      most = std::max(most, sent);
    }
    INFO("seed " << base_seed() << ", stream " << stream << ": " << describe(*instance));
    REQUIRE(static_cast<double>(audit.source_max) * q.cost_unit_ns == doctest::Approx(most).epsilon(1e-6));
  }
}
