// JS values to the solver's structs and back.
#include "marshal.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "../model/errors.h"

namespace gimbal::addon {
namespace {

// Below this a cold copy costs the JS thread less than a second visit from a runner thread would.
constexpr size_t kQuickBytes = size_t{128} << 10;
constexpr size_t kLayerNumbers = 9;  // the columns that lib/planner.ts reads

template <typename T>
struct ElementType;
template <>
struct ElementType<uint32_t> {
  static constexpr napi_typedarray_type kType = napi_uint32_array;
};
template <>
struct ElementType<int32_t> {
  static constexpr napi_typedarray_type kType = napi_int32_array;
};
template <>
struct ElementType<double> {
  static constexpr napi_typedarray_type kType = napi_float64_array;
};

// Where a typed array's elements lie at this moment; data is null where their type is another.
template <typename T>
struct TypedView {
  const T* data = nullptr;
  size_t count = 0;
  bool is_shared = false;  // on a SharedArrayBuffer
};

template <typename T>
TypedView<T> typed_view(Napi::TypedArray array) {
  TypedView<T> view;
  napi_typedarray_type type = napi_int8_array;
  void* data = nullptr;
  napi_value buffer = nullptr;
  bool is_plain = true;
  napi_status status = napi_get_typedarray_info(array.Env(), array, &type, &view.count, &data, &buffer, nullptr);
  if (status == napi_ok) status = napi_is_arraybuffer(array.Env(), buffer, &is_plain);
  NAPI_THROW_IF_FAILED(array.Env(), status, view);
  if (type == ElementType<T>::kType) view.data = static_cast<const T*>(data);
  view.is_shared = !is_plain;
  return view;
}

[[noreturn]] void throw_wrong_array(const char* field, size_t count, size_t received) {
  throw Error(ErrorCode::kInvalidInput, field, std::to_string(count) + " elements of the documented type",
              received == 0 ? "a detached or empty array" : std::to_string(received) + " elements");
}

bool is_given(const Napi::Value& value) { return !value.IsUndefined() && !value.IsNull(); }

int32_t int_field(Napi::Object object, const char* name) {
  return object.Get(name).As<Napi::Number>().Int32Value();
}

size_t product(std::initializer_list<int32_t> factors) {
  size_t result = 1;
  for (const int32_t factor : factors) {
    if (factor < 0) return SIZE_MAX;
    if (factor != 0 && result > SIZE_MAX / static_cast<size_t>(factor)) return SIZE_MAX;
    result *= static_cast<size_t>(factor);
  }
  return result;
}

template <typename T>
std::vector<T> small_array(Napi::Object object, const char* name, size_t count) {
  const auto view = typed_view<T>(object.Get(name).As<Napi::TypedArray>());
  if (view.count != count || (view.data == nullptr && count != 0)) throw_wrong_array(name, count, view.count);
  return std::vector<T>(view.data, view.data + count);
}

void read_weight(Napi::Object weights, const char* name, double* weight) {
  const Napi::Value value = weights.Get(name);
  if (is_given(value)) *weight = value.As<Napi::Number>().DoubleValue();
}

BackendChoice backend_from_js(Napi::Object value) {
  const std::string backend = value.Get("backend").As<Napi::String>();
  return backend == "cpu" ? BackendChoice::kCpu : backend == "cuda" ? BackendChoice::kCuda : BackendChoice::kAuto;
}

template <typename T>
Napi::Value array_to_js(Napi::Env env, const std::vector<T>& values) {
  auto array = Napi::TypedArrayOf<T>::New(env, values.size());
  if (!values.empty()) std::memcpy(array.Data(), values.data(), values.size() * sizeof(T));
  return array;
}

Napi::Value layers_to_js(Napi::Env env, const std::vector<LayerReport>& layers) {
  auto table = Napi::Float64Array::New(env, layers.size() * kLayerNumbers);  // [layers][kLayerNumbers]
  double* row = table.Data();
  for (const LayerReport& layer : layers) {
    const double numbers[kLayerNumbers] = {
        layer.objective_ns,  layer.load_max_ns,
        layer.comm_max_ns,   layer.comm_total_ns,
        layer.source_max_ns, static_cast<double>(layer.migrations),
        static_cast<double>(layer.forced_migrations), layer.lower_bound_ns,
        layer.gap};
    row = std::copy(std::begin(numbers), std::end(numbers), row);
  }
  return table;
}

Napi::Array devices_to_js(Napi::Env env, const std::vector<DeviceInfo>& devices) {
  Napi::Array list = Napi::Array::New(env, devices.size());
  for (uint32_t i = 0; i < devices.size(); ++i) {
    const DeviceInfo& device = devices[i];
    Napi::Object entry = Napi::Object::New(env);
    entry.Set("name", device.name);
    entry.Set("computeCapability", device.compute_capability);
    entry.Set("multiprocessors", device.multiprocessors);
    entry.Set("memoryBytes", static_cast<double>(device.memory_bytes));
    entry.Set("clockMhz", device.clock_mhz);
    entry.Set("memoryClockMhz", device.memory_clock_mhz);
    entry.Set("memoryBusBits", device.memory_bus_bits);
    entry.Set("driver", device.driver);
    entry.Set("runtime", device.runtime);
    list.Set(i, entry);
  }
  return list;
}

}  // namespace

template <typename T>
IncomingArray<T>::IncomingArray(const char* field, Napi::Value value, size_t count) : field_(field), count_(count) {
  reference_ = Napi::Persistent(value.As<Napi::Object>());
  const auto view = typed_view<T>(array());
  check(view.data, view.count);
  if (view.is_shared) shared_ = view.data;
}

template <typename T>
void IncomingArray<T>::check(const T* data, size_t received) const {
  if (received != count_ || data == nullptr) throw_wrong_array(field_, count_, received);
}

template <typename T>
bool IncomingArray<T>::is_quick(const Buffer<T>& into) const {
  return shared_ != nullptr || into.fits(count_) || count_ * sizeof(T) <= kQuickBytes;
}

template <typename T>
void IncomingArray<T>::capture(Buffer<T>& into) {
  if (reference_.IsEmpty() || shared_ != nullptr) return;
  const auto view = typed_view<T>(array());
  check(view.data, view.count);  // again: JS may have transferred the buffer since
  into.reserve(count_, false);
  std::memcpy(into.data(), view.data, count_ * sizeof(T));
  reference_.Reset();
}

template <typename T>
void IncomingArray<T>::copy_shared(Buffer<T>& into) const {
  if (shared_ == nullptr) return;
  into.reserve(count_, false);
  std::memcpy(into.data(), shared_, count_ * sizeof(T));
}

template class IncomingArray<uint32_t>;
template class IncomingArray<int32_t>;

IncomingProblem::IncomingProblem(Napi::Object value) {
  input_.layers = int_field(value, "layers");
  input_.sources = int_field(value, "sources");
  input_.experts = int_field(value, "experts");
  input_.gpus = int_field(value, "gpus");
  input_.slots_per_gpu = int_field(value, "slotsPerGpu");
  input_.compute_cost_ns = small_array<double>(value, "computeCost", product({input_.gpus}));
  input_.comm_cost_ns = small_array<double>(value, "commCost", product({input_.sources, input_.gpus}));
  const bool nearest = value.Get("replicaChoice").As<Napi::String>().Utf8Value() == "nearest";
  input_.replica_choice = nearest ? ReplicaChoice::kNearest : ReplicaChoice::kEven;
  const auto weights = value.Get("weights").As<Napi::Object>();
  read_weight(weights, "load", &input_.weights.load);
  read_weight(weights, "commMax", &input_.weights.comm_max);
  read_weight(weights, "commTotal", &input_.weights.comm_total);
  read_weight(weights, "migration", &input_.weights.migration);
  input_.migration_cost_ns = value.Get("migrationCost").As<Napi::Number>().DoubleValue();
  input_.migration_budget = value.Get("migrationBudget").As<Napi::Number>().Int64Value();
  input_.allow_duplicates = value.Get("allowDuplicates").As<Napi::Boolean>();
  const auto dead = value.Get("deadGpus").As<Napi::TypedArray>();
  input_.dead_gpus = small_array<int32_t>(value, "deadGpus", dead.ElementLength());

  const size_t token_count = product({input_.layers, input_.sources, input_.experts});
  tokens_ = IncomingArray<uint32_t>("tokens", value.Get("tokens"), token_count);
  const Napi::Value incumbent = value.Get("incumbent");
  if (!is_given(incumbent)) return;
  input_.incumbent_gpus = int_field(value, "incumbentGpus");
  input_.incumbent_slots_per_gpu = int_field(value, "incumbentSlotsPerGpu");
  const size_t slot_count = product({input_.layers, input_.incumbent_gpus, input_.incumbent_slots_per_gpu});
  incumbent_ = IncomingArray<int32_t>("incumbent", incumbent, slot_count);
}

bool IncomingProblem::is_quick(const ProblemBuffers& buffers) const {
  return tokens_.is_quick(buffers.tokens) && incumbent_.is_quick(buffers.incumbent);
}

void IncomingProblem::prepare(ProblemBuffers& buffers) const {
  tokens_.prepare(buffers.tokens);
  incumbent_.prepare(buffers.incumbent);
}

void IncomingProblem::capture(ProblemBuffers& buffers) {
  tokens_.capture(buffers.tokens);
  incumbent_.capture(buffers.incumbent);
}

ProblemInput IncomingProblem::view(ProblemBuffers& buffers) const {
  tokens_.copy_shared(buffers.tokens);
  incumbent_.copy_shared(buffers.incumbent);
  ProblemInput input = input_;
  input.tokens = buffers.tokens.data();
  if (incumbent_.count() != 0) input.incumbent = buffers.incumbent.data();
  return input;
}

ScoreOptions score_options_from_js(Napi::Object value) { return {backend_from_js(value), int_field(value, "device")}; }

SolveOptions options_from_js(Napi::Object value) {
  SolveOptions options;
  options.backend = backend_from_js(value);
  options.device = int_field(value, "device");
  const std::string effort = value.Get("effort").As<Napi::String>();
  if (effort == "fast") options.effort = Effort::kFast;
  if (effort == "thorough") options.effort = Effort::kThorough;
  options.walkers = int_field(value, "walkers");
  options.rounds = int_field(value, "rounds");
  options.threads = int_field(value, "threads");
  options.time_limit_ms = value.Get("timeLimitMs").As<Napi::Number>().DoubleValue();
  bool lossless = false;
  options.seed = value.Get("seed").As<Napi::BigInt>().Uint64Value(&lossless);
  return options;
}

Napi::Value plan_to_js(Napi::Env env, const Plan& plan) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("physicalToLogical", array_to_js(env, plan.physical_to_logical));
  object.Set("replicaCount", array_to_js(env, plan.replica_count));
  object.Set("layers", layers_to_js(env, plan.layers));
  object.Set("objective", plan.objective_ns);
  object.Set("lowerBound", plan.lower_bound_ns);
  object.Set("gap", plan.gap);
  object.Set("migrations", static_cast<double>(plan.migrations));
  object.Set("forcedMigrations", static_cast<double>(plan.forced_migrations));
  object.Set("backend", plan.backend);
  object.Set("backendDetail", plan.backend_detail);
  if (!plan.backend_reason.empty()) object.Set("backendReason", plan.backend_reason);
  object.Set("seed", Napi::BigInt::New(env, plan.seed));
  object.Set("walkers", plan.walkers);
  object.Set("rounds", plan.rounds);
  object.Set("elapsedMs", plan.elapsed_ms);
  if (plan.kernel_ms > 0) object.Set("kernelMs", plan.kernel_ms);
  return object;
}

Napi::Value evaluation_to_js(Napi::Env env, const Evaluation& evaluation) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("objective", array_to_js(env, evaluation.objective_ns));
  object.Set("loadMax", array_to_js(env, evaluation.load_max_ns));
  object.Set("commMax", array_to_js(env, evaluation.comm_max_ns));
  object.Set("commTotal", array_to_js(env, evaluation.comm_total_ns));
  object.Set("migrations", array_to_js(env, evaluation.migrations));
  object.Set("backend", evaluation.backend);
  if (!evaluation.backend_reason.empty()) object.Set("backendReason", evaluation.backend_reason);
  if (evaluation.kernel_ms > 0) object.Set("kernelMs", evaluation.kernel_ms);
  return object;
}

Napi::Value scores_to_js(Napi::Env env, const Scores& scores) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("pressureMs", array_to_js(env, scores.pressure_ms));
  object.Set("best", array_to_js(env, scores.best));
  object.Set("backend", scores.backend);
  if (!scores.backend_reason.empty()) object.Set("backendReason", scores.backend_reason);
  return object;
}

Napi::Value backends_to_js(Napi::Env env) {
  const std::vector<BackendInfo> backends = list_backends();
  Napi::Array list = Napi::Array::New(env, backends.size());
  for (uint32_t i = 0; i < backends.size(); ++i) {
    Napi::Object entry = Napi::Object::New(env);
    entry.Set("name", backends[i].name);
    entry.Set("available", backends[i].available);
    entry.Set("description", backends[i].description);
    if (!backends[i].reason.empty()) entry.Set("reason", backends[i].reason);
    if (!backends[i].devices.empty()) entry.Set("devices", devices_to_js(env, backends[i].devices));
    list.Set(i, entry);
  }
  return list;
}

}  // namespace gimbal::addon
