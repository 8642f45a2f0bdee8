// Where floating point ends: each bad field is named, costs keep their ratios, and sums fit or are refused.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "../model/errors.h"
#include "../model/quantise.h"
#include "instance.h"

using namespace gimbal;
using namespace gimbal::test;

namespace {

// 1 layer, 2 sources, 3 experts, 2 GPUs x 2 slots.
std::unique_ptr<Instance> small() {
  auto out = std::make_unique<Instance>();
  ProblemInput& in = out->input;
  in.layers = 1;
  in.sources = 2;
  in.experts = 3;
  in.gpus = 2;
  in.slots_per_gpu = 2;
  out->tokens = {10, 20, 30, 4, 8, 2};
  in.compute_cost_ns = {100.0, 150.0};
  in.comm_cost_ns = {0.0, 5.0, 7.0, 0.0};
  return out;
}

struct Refusal {
  ErrorCode code;
  std::string field;
  std::string received;
};

// What quantise says to the problem after `spoil`.
Refusal refusal(const std::function<void(Instance*)>& spoil) {
  auto instance = small();
  spoil(instance.get());
  try {
    quantise(instance->problem());
  } catch (const Error& error) {
    CHECK(std::string(error.what()) == error.field() + ": expected " + error.expected() + " but received " + error.received());
    return {error.code(), error.field(), error.received()};
  }
  return {ErrorCode::kInternal, "accepted", ""};
}

void check_invalid(const char* field, const std::function<void(ProblemInput*)>& spoil) {
  const Refusal r = refusal([&](Instance* instance) { spoil(&instance->input); });
  CHECK(r.field == field);
  CHECK(r.code == ErrorCode::kInvalidInput);
}

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

}  // namespace

TEST_CASE("quantise: names the field at fault") {
  for (int32_t bad : {0, -1, INT32_MIN}) {
    check_invalid("layers", [&](ProblemInput* in) { in->layers = bad; });
    check_invalid("sources", [&](ProblemInput* in) { in->sources = bad; });
    check_invalid("experts", [&](ProblemInput* in) { in->experts = bad; });
    check_invalid("gpus", [&](ProblemInput* in) { in->gpus = bad; });
    check_invalid("slotsPerGpu", [&](ProblemInput* in) { in->slots_per_gpu = bad; });
  }
  check_invalid("slotsPerGpu", [](ProblemInput* in) { in->slots_per_gpu = 1 << 24; });
  check_invalid("slotsPerGpu", [](ProblemInput* in) { in->gpus = INT32_MAX; });
  check_invalid("experts", [](ProblemInput* in) { in->experts = INT32_MAX; });
  for (double bad : {-1.0, -1e-300, kNan, kInf, -kInf}) {
    check_invalid("computeCost", [&](ProblemInput* in) { in->compute_cost_ns[1] = bad; });
    check_invalid("commCost", [&](ProblemInput* in) { in->comm_cost_ns[2] = bad; });
    check_invalid("weights.load", [&](ProblemInput* in) { in->weights.load = bad; });
    check_invalid("weights.commMax", [&](ProblemInput* in) { in->weights.comm_max = bad; });
    check_invalid("weights.commTotal", [&](ProblemInput* in) { in->weights.comm_total = bad; });
    check_invalid("weights.migration", [&](ProblemInput* in) { in->weights.migration = bad; });
    check_invalid("migrationCost", [&](ProblemInput* in) { in->migration_cost_ns = bad; });
  }
  check_invalid("computeCost", [](ProblemInput* in) { in->compute_cost_ns.pop_back(); });
  check_invalid("commCost", [](ProblemInput* in) { in->comm_cost_ns.push_back(1.0); });
  check_invalid("deadGpus", [](ProblemInput* in) { in->dead_gpus = {2}; });
  check_invalid("deadGpus", [](ProblemInput* in) { in->dead_gpus = {-1}; });

  auto without_tokens = small();
  ProblemInput in = without_tokens->problem();
  in.tokens = nullptr;
  CHECK_THROWS_WITH_AS(quantise(in), doctest::Contains("tokens"), Error);
}

TEST_CASE("quantise: says where a bad cost stands and what it is") {
  const Refusal r = refusal([](Instance* instance) { instance->input.comm_cost_ns[3] = -2.5; });
  CHECK(r.received.find("-2.5") != std::string::npos);
  CHECK(r.received.find("3") != std::string::npos);
}

TEST_CASE("quantise: too few live slots is infeasible, and so are more slots than experts without duplicates") {
  Refusal r = refusal([](Instance* i) { i->input.dead_gpus = {0}; });
  CHECK(r.code == ErrorCode::kInfeasible);
  CHECK(r.field == "slotsPerGpu");
  r = refusal([](Instance* i) { i->input.dead_gpus = {0, 1}; });
  CHECK(r.code == ErrorCode::kInfeasible);
  r = refusal([](Instance* i) { i->input.slots_per_gpu = 4; });
  CHECK(r.code == ErrorCode::kInfeasible);
  auto allowed = small();
  allowed->input.slots_per_gpu = 4;
  allowed->input.allow_duplicates = true;
  CHECK_NOTHROW(quantise(allowed->problem()));
}

TEST_CASE("quantise: costs keep their ratios, and powers of two are exact") {
  for (uint64_t stream = 0; stream < 200; ++stream) {
    Random random(stream + 900);
    const auto instance = draw_instance(random);
    INFO("seed " << base_seed() << ", stream " << stream << ": " << describe(*instance));
    const ProblemInput& in = instance->problem();
    const Quantised q = quantise(in);
    for (int32_t g = 0; g < q.gpus; ++g) {
      const int32_t id = q.gpu_id[static_cast<size_t>(g)];
      REQUIRE(q.live_index[static_cast<size_t>(id)] == g);
      REQUIRE(std::fabs(q.compute_cost[static_cast<size_t>(g)] * q.cost_unit_ns - in.compute_cost_ns[static_cast<size_t>(id)]) <=
              q.cost_unit_ns / 2);
      for (int32_t s = 0; s < q.sources; ++s) {
        REQUIRE(std::fabs(q.comm_cost[static_cast<size_t>(s * q.gpus + g)] * q.cost_unit_ns -
                          in.comm_cost_ns[static_cast<size_t>(s * in.gpus + id)]) <= q.cost_unit_ns / 2);
      }
    }
    REQUIRE(std::exp2(std::round(std::log2(q.cost_unit_ns))) == q.cost_unit_ns);
    // The greatest weight is one, and the others are in proportion: J's unit is that weight times the cost's.
    const auto weight = [&](uint32_t w) { return w / 2147483648.0 * q.objective_unit_ns / q.cost_unit_ns; };
    REQUIRE(weight(q.weights.load) == doctest::Approx(in.weights.load).epsilon(1e-9));
    REQUIRE(weight(q.weights.comm_max) == doctest::Approx(in.weights.comm_max).epsilon(1e-7));
    REQUIRE(weight(q.weights.comm_total) == doctest::Approx(in.weights.comm_total / in.gpus).epsilon(1e-6));
    REQUIRE(std::fabs(static_cast<double>(q.weights.migration) * q.objective_unit_ns - in.migration_cost_ns * in.weights.migration) <=
            q.objective_unit_ns);
  }
}

TEST_CASE("quantise: the worst sums fit 62 bits, or the field is refused") {
  const std::vector<double> costs = {1e-12, 1.0, 350.0, 1e9, 1e15};
  int32_t accepted = 0, refused = 0;
  for (int32_t experts : {1, 64, 384, 4096, 16384}) {
    for (int32_t layers : {1, 61}) {
      if (int64_t{experts} * layers > 300000) continue;
      for (double cost : costs) {
        for (double migration : {0.0, 1.0, 1e12}) {
          auto out = std::make_unique<Instance>();
          ProblemInput& in = out->input;
          in.layers = layers;
          in.sources = 1;
          in.experts = experts;
          in.gpus = std::max(2, experts / 16);
          in.slots_per_gpu = std::min(experts, 16);
          out->tokens.assign(static_cast<size_t>(layers) * static_cast<size_t>(experts), UINT32_MAX);
          in.compute_cost_ns.assign(static_cast<size_t>(in.gpus), cost);
          in.comm_cost_ns.assign(static_cast<size_t>(in.gpus), cost * 0.99);
          in.migration_cost_ns = migration * cost;
          CAPTURE(experts);
          CAPTURE(layers);
          CAPTURE(cost);
          CAPTURE(migration);
          try {
            const Quantised q = quantise(out->problem());
            ++accepted;
            const double tokens = 4294967295.0 * experts * layers;
            const double dearest = q.compute_cost[0];
            REQUIRE(dearest >= 512);  // half of the least resolution promised
            const double pairs = static_cast<double>(in.gpus) * in.slots_per_gpu * layers;
            REQUIRE(3 * tokens * dearest + pairs * static_cast<double>(q.weights.migration) < std::ldexp(1.0, 62));
          } catch (const Error& error) {
            ++refused;
            REQUIRE(error.code() == ErrorCode::kOutOfRange);
            REQUIRE(!error.field().empty());
          }
        }
      }
    }
  }
  CHECK(accepted > 20);
  CHECK(refused > 5);
}

TEST_CASE("quantise: costs of extreme size work, or are refused with their own field") {
  for (double cost : {1e-320, 1e-300, 1e-200, 1e200, 1e300, 1e308}) {
    CAPTURE(cost);
    auto instance = small();
    instance->input.compute_cost_ns = {cost, cost};
    instance->input.comm_cost_ns = {0.0, cost, cost, 0.0};
    try {
      const Quantised q = quantise(instance->problem());
      CHECK(q.compute_cost[0] >= 512);
      // Every reported time is a finite number.
      CHECK(std::isfinite(static_cast<double>(int64_t{74} * q.compute_cost[0]) * q.cost_unit_ns));
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kOutOfRange);
      CHECK((error.field() == "computeCost" || error.field() == "commCost"));
    }
  }
}
