// An engine lives as long as its batch or scorer, with its buffers and its stream, and is given up after a failure: the next
// call opens a fresh one. Nothing here decides anything about a plan; what the CPU backend answers, this one answers.
#include "backend_cuda.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>

#include "../../model/errors.h"
#include "../../spec/search.h"
#include "library.h"

namespace gimbal {
namespace {

using cuda::PluginApi;
using cuda::PluginStatus;

// A launch of walks is to take about this long, so that a cancellation is heard.
constexpr double kLaunchMs = 20;
// Candidates that the first launch may look at, before any has been timed: some milliseconds of a small GPU.
constexpr int64_t kFirstLaunchCandidates = int64_t{1} << 28;
// Layers are the second dimension of some grids, which ends there.
constexpr int32_t kMostLayers = 65535;
// Candidate placements given to the device between two looks at a cancellation.
constexpr int64_t kEvaluateCells = int64_t{1} << 26;

// Devices that the process cannot use any more, and why.
class LostDevices {
 public:
  void add(int32_t device, const std::string& why) {
    std::lock_guard<std::mutex> lock(mutex_);
    lost_.emplace(device, why);
  }
  // Empty where the device is well.
  std::string reason(int32_t device) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto at = lost_.find(device);
    return at == lost_.end() ? "" : at->second;
  }

 private:
  std::mutex mutex_;
  std::map<int32_t, std::string> lost_;
};

LostDevices& lost_devices() {
  static LostDevices devices;
  return devices;
}

[[noreturn]] void fail(const PluginStatus& status) {
  throw Error(status.out_of_memory != 0 ? ErrorCode::kDeviceMemory : ErrorCode::kBackendFailed, "cuda",
              std::string(status.call[0] != '\0' ? status.call : "the device") + " to succeed", describe(status));
}

// An engine of the plug-in, opened when it is needed.
class DeviceEngine {
 public:
  DeviceEngine(const PluginApi& api, int32_t device) : api_(api), device_(device) {}
  ~DeviceEngine() { give_up(); }
  DeviceEngine(const DeviceEngine&) = delete;
  DeviceEngine& operator=(const DeviceEngine&) = delete;

  void open() {
    if (engine_ != nullptr) return;
    run([&](PluginStatus* status) { return api_.open(device_, &engine_, status); });
  }
  cuda::PluginEngine* get() const { return engine_; }

  // Throws where the plug-in says that it failed.
  template <class Call>
  void run(Call plugin_call) {
    PluginStatus status;
    if (plugin_call(&status) == 0) return;
    give_up();  // whatever state it is in
    if (status.device_lost != 0) {
      lost_devices().add(device_, "device " + std::to_string(device_) + " is lost to this process (" + describe(status) + ")");
    }
    fail(status);
  }

 private:
  void give_up() {
    if (engine_ != nullptr) api_.close(engine_);
    engine_ = nullptr;
  }

  const PluginApi& api_;
  const int32_t device_;
  cuda::PluginEngine* engine_ = nullptr;
};

class BatchCuda final : public LayerBatch {
 public:
  BatchCuda(const PluginApi& api, int32_t device) : api_(api), engine_(api, device) {}

  void fill(const BatchInputs& inputs, Threads& threads, const FillHooks& hooks) override {
    inputs_ = inputs;
    const Quantised& q = *inputs.problem;
    if (inputs.count > kMostLayers) {
      throw Error(ErrorCode::kOutOfRange, "layers", "at most 65535 that must be planned together on a GPU",
                  std::to_string(inputs.count));
    }
    fetched_ids_.clear();
    engine_.open();
    const size_t count = static_cast<size_t>(inputs.count);
    cuda::PluginLayers layers;
    layers.count = inputs.count;
    layers.shape = fine_layer(q, inputs.first);
    layers.weights = q.weights;
    layers.pattern = inputs.pattern->view();
    layers.exceptions = static_cast<int32_t>(inputs.pattern->source.size());
    layers.uniform_compute = q.uniform_compute ? 1 : 0;
    layers.allow_duplicates = q.allow_duplicates ? 1 : 0;
    expert_tokens_.resize(count * static_cast<size_t>(q.experts));
    shifts_.resize(count);
    engine_.run([&](PluginStatus* status) {
      return api_.fill(engine_.get(), &layers, 1, expert_tokens_.data(), shifts_.data(), status);
    });
    std::vector<HeldPlacement> incumbents(count);
    threads.parallel_for(inputs.count, [&](int64_t n) {
      incumbents[static_cast<size_t>(n)] = hooks.held(static_cast<int32_t>(n), expert_tokens_.data() + n * q.experts);
    });
    std::vector<spec::FineTerms> terms(count);
    if (incumbents.front().held != nullptr) hold(incumbents, terms.data());
    threads.parallel_for(inputs.count, [&](int64_t n) {
      hooks.ready(static_cast<int32_t>(n), shifts_[static_cast<size_t>(n)], terms[static_cast<size_t>(n)]);
    });
  }

  void prove(const std::vector<int64_t>& prices, int32_t iterations) override {
    std::lock_guard<std::mutex> lock(bounds_mutex_);
    bounds_.clear();
    price_count_ = prices.size();
    engine_.run([&](PluginStatus* status) {
      return api_.prove(engine_.get(), prices.data(), static_cast<int32_t>(prices.size()), iterations, status);
    });
  }

  void begin_walks(const std::vector<std::vector<WalkOrder>>& layers) override {
    std::vector<cuda::PluginWalk> walks;
    most_found_ = 0;
    for (size_t n = 0; n < layers.size(); ++n) {
      for (const WalkOrder& order : layers[n]) {
        walks.push_back({order.plan, static_cast<int32_t>(n), order.start, order.frontier});
        most_found_ += static_cast<size_t>(std::max(order.frontier, 1));
      }
    }
    walk_count_ = static_cast<int64_t>(walks.size());
    total_steps_ = walks.empty() ? 0 : walks.front().plan.total_steps;
    steps_done_ = 0;
    engine_.run([&](PluginStatus* status) {
      return api_.begin_walks(engine_.get(), walks.data(), static_cast<int32_t>(walks.size()), status);
    });
  }

  // In launches that end now and then, so that a cancellation is heard and progress is told. Pieces of a walk are the walk.
  bool walk(int64_t until, Threads&, const std::atomic<bool>* cancel, const std::function<void(int64_t)>& on_walks) override {
    const int64_t end = std::min(until, total_steps_);
    const Quantised& q = *inputs_.problem;
    const int64_t per_round = spec::steps_per_round(q.gpus);
    const int64_t scan = int64_t{q.slots} * q.slots * spec::padded_gpus(q.gpus);
    const int64_t begin = steps_done_;
    int64_t told = 0;
    int64_t rounds = std::max<int64_t>(1, kFirstLaunchCandidates / std::max<int64_t>(1, scan * per_round * walk_count_));
    do {
      if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) return false;
      const auto started = std::chrono::steady_clock::now();
      const int64_t next = rounds > (end - steps_done_) / per_round ? end : steps_done_ + rounds * per_round;
      engine_.run([&](PluginStatus* status) { return api_.walk(engine_.get(), next, status); });
      const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - started;
      steps_done_ = std::max(steps_done_, next);
      if (took.count() < kLaunchMs / 2) rounds *= 2;
      if (took.count() > kLaunchMs * 2) rounds = std::max<int64_t>(1, rounds / 2);
      // Walks go on together: in between, as many are told of as the steps behind them are worth.
      const int64_t there = end <= begin ? walk_count_ : walk_count_ * (steps_done_ - begin) / (end - begin);
      if (on_walks && there > told) on_walks(there - told);
      told = there;
    } while (steps_done_ < end);
    return true;
  }

  void collect(bool best_only, Threads& threads,
               const std::function<void(int32_t, const std::vector<Found>&)>& then) override {
    const size_t count = static_cast<size_t>(inputs_.count);
    std::vector<std::vector<Found>> by_layer(count);
    if (best_only) {
      std::vector<cuda::PluginFound> best(count);
      fetched_.resize(count * cells());
      engine_.run([&](PluginStatus* status) { return api_.best(engine_.get(), best.data(), fetched_.data(), status); });
      fetched_ids_.clear();
      for (const cuda::PluginFound& f : best) {
        by_layer[static_cast<size_t>(f.layer)].push_back({f.id, f.terms});
        fetched_ids_.push_back(f.id);
      }
    } else {
      for (const cuda::PluginFound& f : all_found()) by_layer[static_cast<size_t>(f.layer)].push_back({f.id, f.terms});
    }
    threads.parallel_for(inputs_.count, [&](int64_t n) { then(static_cast<int32_t>(n), by_layer[static_cast<size_t>(n)]); });
  }

  void keep(const std::vector<std::vector<int32_t>>& ids) override {
    std::vector<int32_t> flat, counts;
    for (const std::vector<int32_t>& layer : ids) {
      flat.insert(flat.end(), layer.begin(), layer.end());
      counts.push_back(static_cast<int32_t>(layer.size()));
    }
    engine_.run([&](PluginStatus* status) { return api_.keep(engine_.get(), flat.data(), counts.data(), status); });
  }

  void fetch(const std::vector<int32_t>& ids) override {
    if (ids == fetched_ids_) return;  // collect() has brought them
    fetched_.resize(ids.size() * cells());
    engine_.run([&](PluginStatus* status) { return api_.fetch(engine_.get(), ids.data(), fetched_.data(), status); });
    fetched_ids_ = ids;
  }

  const int32_t* placement(int32_t n) const override { return fetched_.data() + static_cast<size_t>(n) * cells(); }

  int64_t bound(int32_t n, size_t which) override {
    std::lock_guard<std::mutex> lock(bounds_mutex_);
    if (bounds_.empty()) {
      bounds_.resize(price_count_ * static_cast<size_t>(inputs_.count));
      engine_.run([&](PluginStatus* status) { return api_.bounds(engine_.get(), bounds_.data(), status); });
    }
    return bounds_[which * static_cast<size_t>(inputs_.count) + static_cast<size_t>(n)];
  }

  bool evaluate(const int32_t* candidates, int64_t count, int64_t layer_stride, Threads&, const std::atomic<bool>* cancel,
                const BatchEvaluation& out) override {
    const Quantised& q = *inputs_.problem;
    const spec::LiveGpus live{q.all_gpus, q.live_index.data()};
    const int64_t row = int64_t{q.all_gpus} * q.slots;
    const int64_t at_once = std::max<int64_t>(1, kEvaluateCells / (row * inputs_.count));
    for (int64_t first = 0; first < count; first += at_once) {
      if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) return false;
      const int64_t at = first * inputs_.count;
      engine_.run([&](PluginStatus* status) {
        return api_.evaluate(engine_.get(), candidates + first * layer_stride * row, std::min(at_once, count - first), layer_stride,
                             inputs_.first, &live, out.terms + at, out.bad_slot + at, status);
      });
    }
    return true;
  }

  double kernel_ms() const override { return engine_.get() == nullptr ? 0 : api_.kernel_ms(engine_.get()); }

 private:
  size_t cells() const {
    return static_cast<size_t>(inputs_.problem->gpus) * static_cast<size_t>(inputs_.problem->slots);
  }

  void hold(const std::vector<HeldPlacement>& incumbents, spec::FineTerms* terms) {
    std::vector<const uint8_t*> held;
    std::vector<const int32_t*> start;
    for (const HeldPlacement& incumbent : incumbents) {
      held.push_back(incumbent.held);
      start.push_back(incumbent.start);
    }
    engine_.run([&](PluginStatus* status) { return api_.hold(engine_.get(), held.data(), start.data(), terms, status); });
  }

  std::vector<cuda::PluginFound> all_found() {
    int64_t count = 0;
    std::vector<cuda::PluginFound> found(most_found_);
    engine_.run([&](PluginStatus* status) {
      return api_.found(engine_.get(), found.data(), static_cast<int64_t>(found.size()), &count, status);
    });
    found.resize(static_cast<size_t>(count));
    return found;
  }

  const PluginApi& api_;
  DeviceEngine engine_;
  BatchInputs inputs_;
  std::vector<int64_t> expert_tokens_;  // [layers][experts]
  std::vector<int32_t> shifts_;         // [layers]
  int64_t walk_count_ = 0;
  int64_t total_steps_ = 0;
  int64_t steps_done_ = 0;
  size_t most_found_ = 0;  // placements that the walks at hand can keep
  std::vector<int32_t> fetched_;      // [layers][gpus][slots]
  std::vector<int32_t> fetched_ids_;  // [layers]
  std::mutex bounds_mutex_;
  size_t price_count_ = 0;
  std::vector<int64_t> bounds_;  // [prices][layers]; empty until asked for
};

class ScorerCuda final : public Scorer {
 public:
  ScorerCuda(const PluginApi& api, int32_t device) : api_(api), engine_(api, device) {}

  // 4 MiB to bring back, many times what a launch and the latency of a copy cost.
  int64_t scores_at_once() const override { return int64_t{1} << 19; }
  void score(const spec::EngineColumns& engines, const spec::RequestColumns& requests, int64_t* pressure_us,
             int32_t* best) override {
    engine_.open();
    engine_.run([&](PluginStatus* status) {
      return api_.score(engine_.get(), &engines, &requests, pressure_us, best, status);
    });
  }

 private:
  const PluginApi& api_;
  DeviceEngine engine_;
};

// 12080 is CUDA 12.8.
std::string cuda_version(int32_t number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

std::string compute_capability(const cuda::PluginDevice& device) {
  return std::to_string(device.major) + "." + std::to_string(device.minor);
}

class BackendCuda final : public Backend {
 public:
  BackendCuda(const PluginApi& api, int32_t device, const cuda::PluginDevice& info)
      : api_(api),
        device_(device),
        detail_(std::string(info.name) + ", device " + std::to_string(device) + ", compute capability " +
                compute_capability(info)) {}

  std::string name() const override { return "cuda"; }
  std::string detail() const override { return detail_; }
  // All at once: the more walks there are, the better a GPU is filled.
  int32_t layers_per_batch(int32_t) const override { return kMostLayers; }
  std::unique_ptr<LayerBatch> make_batch() override { return std::make_unique<BatchCuda>(api_, device_); }
  std::unique_ptr<Scorer> make_scorer() override { return std::make_unique<ScorerCuda>(api_, device_); }

 private:
  const PluginApi& api_;
  const int32_t device_;
  const std::string detail_;
};

}  // namespace

std::vector<DeviceInfo> cuda_devices() {
  std::string reason;
  std::vector<DeviceInfo> infos;
  for (const cuda::PluginDevice& device : cuda::list_devices(&reason)) {
    DeviceInfo info;
    info.name = device.name;
    info.compute_capability = compute_capability(device);
    info.multiprocessors = device.multiprocessors;
    info.memory_bytes = device.memory_bytes;
    info.clock_mhz = device.clock_khz / 1e3;
    info.memory_clock_mhz = device.memory_clock_khz / 1e3;
    info.memory_bus_bits = device.memory_bus_bits;
    info.driver = cuda_version(device.driver_version);
    info.runtime = cuda_version(device.runtime_version);
    infos.push_back(info);
  }
  return infos;
}

Backend* cuda_backend(int32_t device, std::string* reason) {
  static std::mutex mutex;
  static std::map<int32_t, std::unique_ptr<BackendCuda>> backends;
  const std::vector<cuda::PluginDevice> devices = cuda::list_devices(reason);
  if (devices.empty()) return nullptr;
  if (device < 0 || static_cast<size_t>(device) >= devices.size()) {
    *reason = "device " + std::to_string(device) + " of " + std::to_string(devices.size());
    return nullptr;
  }
  *reason = lost_devices().reason(device);
  if (!reason->empty()) return nullptr;
  std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<BackendCuda>& backend = backends[device];
  if (backend == nullptr) {
    backend = std::make_unique<BackendCuda>(*cuda::library().api, device, devices[static_cast<size_t>(device)]);
  }
  return backend.get();
}

}  // namespace gimbal
