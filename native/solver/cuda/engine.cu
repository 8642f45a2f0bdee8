// See engine.h. All work of an engine goes through its one stream, but for the bounds, which few blocks work on for long: they
// go beside the walks on a stream of their own. Host memory that a copy reads or writes is pinned and is left alone until its
// stream has been waited for.
#include "engine.h"

#include <algorithm>
#include <cstdlib>
#include <tuple>
#include <utility>

#include "kernels.h"

namespace gimbal {
namespace cuda {
namespace {

// Blocks in a launch of walks whose work lies in global memory: their memory is this many times one walk's.
constexpr int32_t kMostGlobalWalks = 1024;
// Bytes of candidates in one half of the staging memory.
constexpr size_t kCandidateBytes = size_t{16} << 20;
constexpr u32 kTeamShared = BlockTeam::kSharedBytes;
// Of each block's shared memory, what the driver keeps.
constexpr size_t kReservedShared = 1024;

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, int32_t threads, size_t shared_bytes,
            cudaStream_t stream, Arguments... arguments) {
  std::tuple<Parameters...> values(arguments...);
  std::apply(
      [&](Parameters&... value) {
        void* pointers[] = {static_cast<void*>(&value)...};
        check(name, cudaLaunchKernel(kernel, grid, dim3(static_cast<unsigned>(threads)), pointers, shared_bytes, stream));
      },
      values);
}

dim3 grid(int64_t x, int64_t y = 1) { return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y)); }

template <class Kernel>
void allow_shared(Kernel kernel, size_t bytes) {
  check("cudaFuncSetAttribute",
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

// The search tables of one layer.
void lay_out_tables(const FineLayer& fine, bool uniform, ArrayLayout* layout, DeviceLayer* layer) {
  const u64 experts = static_cast<u64>(fine.experts);
  const u64 gpus = static_cast<u64>(fine.gpus);
  const u64 stride = static_cast<u64>(padded_gpus(fine.gpus));
  const u64 sources = fine.nearest ? static_cast<u64>(fine.sources) : 0;
  SearchTables& t = layer->tables;
  layout->place(&layer->expert_tokens, experts);
  layout->place(&layer->comm, gpus * experts);
  layout->place(&layer->wide, 2 * experts);
  layout->place(&t.load, uniform ? experts : experts * stride);
  if (uniform) {
    t.load_t = t.load;
  } else {
    layout->place(&t.load_t, gpus * experts);
  }
  layout->place(&t.comm, experts * stride);
  layout->place(&t.comm_t, gpus * experts);
  layout->place(&t.source_load, sources * experts);
  layout->place(&t.source_comm, sources * experts);
  layout->place(&t.compute_factor, fine.nearest ? stride : 0);
  layout->place(&t.comm_factor, sources * stride);
  layout->place(&t.distance, sources * stride);
}

// Where the inputs of all layers lie: the same in pinned and in device memory, so that one copy brings them over.
struct Inputs {
  DeviceLayer* layers = nullptr;
  u32* compute_cost = nullptr;
  u32* comm_cost = nullptr;
  u32* base = nullptr;
  i32* first = nullptr;
  i32* source = nullptr;
  u32* magnitude = nullptr;
  u8* below = nullptr;
  u32* tokens = nullptr;
};

u64 lay_out_inputs(const PluginLayers& in, char* memory, Inputs* out) {
  const FineLayer& fine = in.shape;
  const u64 sources = static_cast<u64>(fine.sources);
  const u64 gpus = static_cast<u64>(fine.gpus);
  const u64 exceptions = static_cast<u64>(in.exceptions);
  ArrayLayout layout{memory};
  layout.place(&out->layers, static_cast<u64>(in.count));
  layout.place(&out->compute_cost, gpus);
  layout.place(&out->comm_cost, sources * gpus);
  layout.place(&out->base, sources);
  layout.place(&out->first, gpus + 1);
  layout.place(&out->source, exceptions);
  layout.place(&out->magnitude, exceptions);
  layout.place(&out->below, exceptions);
  layout.place(&out->tokens, static_cast<u64>(in.count) * sources * static_cast<u64>(fine.experts));
  return layout.bytes;
}

// GIMBAL_CUDA_THREADS: threads per block of every launch, for finding faults and trying sizes; 0 where there is none.
int32_t threads_of_environment() {
  const char* const named = std::getenv("GIMBAL_CUDA_THREADS");
  if (named == nullptr || *named == '\0') return 0;
  const int threads = std::atoi(named);
  if (threads < kWarp || threads > kMostThreads || threads % kWarp != 0) {
    throw CudaError("GIMBAL_CUDA_THREADS", cudaErrorInvalidValue, "expected a multiple of 32 up to 1024");
  }
  return threads;
}

template <class T>
void copy_in(T* to, const T* from, u64 count) {
  if (count > 0) std::memcpy(static_cast<void*>(to), from, count * sizeof(T));
}

// Columns that lie one after the other, the same in pinned and in device memory.
class Columns {
 public:
  Columns(char* memory, bool copies) : layout_{memory}, copies_(copies) {}

  // Points the column to its place, and where copies are wanted brings there what it pointed to.
  template <class T>
  void place(const T** column, u64 count) {
    T* to = nullptr;
    layout_.place(&to, count);
    if (copies_) copy_in(to, *column, count);
    *column = to;
  }
  // One that is yet to be written.
  template <class T>
  void place_result(T** column, u64 count) {
    layout_.place(column, count);
  }
  u64 bytes() const { return layout_.bytes; }

 private:
  ArrayLayout layout_;
  bool copies_;
};

struct ScoreBytes {
  u64 in = 0;  // of what scoring reads, which comes first
  u64 all = 0;
};

ScoreBytes lay_out_scores(const EngineColumns& engines, const RequestColumns& requests, char* memory, bool copies,
                          ScoreArguments* out) {
  *out = {engines, requests, nullptr, nullptr};
  Columns columns(memory, copies);
  const u64 count = static_cast<u64>(engines.count);
  columns.place(&out->engines.backlog_us, count);
  columns.place(&out->engines.rest_us, count);
  columns.place(&out->engines.per_token, count);
  columns.place(&out->engines.excess, count);
  columns.place(&out->engines.room_tokens, count);
  columns.place(&out->engines.flags, count);
  const u64 asked = static_cast<u64>(requests.count);
  columns.place(&out->requests.prompt_tokens, asked);
  columns.place(&out->requests.uncached_tokens, asked);
  columns.place(&out->requests.row, asked);
  columns.place(&out->requests.takes, asked);
  columns.place(&out->requests.affinity_row, asked);
  columns.place(&out->requests.uncached, static_cast<u64>(requests.rows) * count);
  columns.place(&out->requests.affinity_us, static_cast<u64>(requests.affinity_rows) * count);
  const u64 in = columns.bytes();
  columns.place_result(&out->pressure_us, asked * count);
  columns.place_result(&out->best, asked);
  return {in, columns.bytes()};
}

}  // namespace

Engine::Engine(int32_t device) : forced_threads_(threads_of_environment()) {
  limits_.device = device;
  use_device();
  int value = 0;
  check("cudaDeviceGetAttribute", cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  limits_.shared_bytes_per_block = value;
  check("cudaDeviceGetAttribute", cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
  limits_.shared_bytes_per_multiprocessor = value;
  check("cudaDeviceGetAttribute", cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device));
  limits_.multiprocessors = value;
  allow_shared(walk_kernel<WalkKind::kFirst, true>, static_cast<size_t>(limits_.shared_bytes_per_block));
  allow_shared(walk_kernel<WalkKind::kAny, true>, static_cast<size_t>(limits_.shared_bytes_per_block));
  allow_shared(walk_kernel<WalkKind::kNearest, true>, static_cast<size_t>(limits_.shared_bytes_per_block));
  allow_shared(price_kernel<true>, static_cast<size_t>(limits_.shared_bytes_per_block));
  allow_shared(evaluate_kernel<true, true>, static_cast<size_t>(limits_.shared_bytes_per_block));
  allow_shared(evaluate_kernel<false, true>, static_cast<size_t>(limits_.shared_bytes_per_block));
  stream_ = main_stream_.open();
  bound_stream_ = side_stream_.open();
  tables_done_.open(cudaEventDisableTiming);
  for (Event& event : half_done_) event.open(cudaEventDisableTiming);
}

Engine::~Engine() {
  cudaSetDevice(limits_.device);
  for (cudaStream_t stream : {stream_, bound_stream_}) cudaStreamSynchronize(stream);  // before any buffer goes
}

// The current device is the thread's, and calls come from many threads.
void Engine::use_device() const { check("cudaSetDevice", cudaSetDevice(limits_.device)); }

// Threads of a block: what a launch would usually take, or what the environment says, as far as the kernel goes with it.
template <class Kernel>
int32_t Engine::threads(Kernel kernel, int32_t usual) const {
  if (forced_threads_ == 0) return usual;
  cudaFuncAttributes attributes;
  check("cudaFuncGetAttributes", cudaFuncGetAttributes(&attributes, kernel));
  return std::min(forced_threads_, static_cast<int32_t>(attributes.maxThreadsPerBlock) / kWarp * kWarp);
}

template <class Kernel, class... Arguments>
void Engine::run(const char* name, Kernel kernel, dim3 grid, int32_t usual_threads, size_t shared_bytes, cudaStream_t stream,
                 Arguments... arguments) const {
  launch(name, kernel, grid, threads(kernel, usual_threads), shared_bytes, stream, arguments...);
}

// Recording a stage takes the host a while, which is not the kernels' time.
template <class Enqueue>
void Engine::run_timed(Stage* stage, const Signature& signature, Enqueue enqueue) {
  stage->prepare(stream_, signature, enqueue);
  clock_.time(stream_, [&] { stage->go(stream_, enqueue); });
}

void Engine::wait() {
  check("cudaStreamSynchronize", cudaStreamSynchronize(stream_));
  clock_.settle();
}

void Engine::wait_for_bounds() {
  if (price_count_ > 0) check("cudaStreamSynchronize", cudaStreamSynchronize(bound_stream_));
}

// ---- tables

void Engine::fill(const PluginLayers& in, bool wait_for_it, int64_t* expert_tokens, int32_t* shifts) {
  use_device();
  wait();  // whatever still reads the staged inputs,
  wait_for_bounds();  // or the tables
  clock_.reset();
  forget_layers();
  shape_ = in.shape;
  count_ = in.count;
  stage_inputs(in);
  Signature signature;
  signature.add(layers_).add(count_).add(shape_.gpus).add(shape_.experts).add(shape_.sources).add(shape_.nearest);
  check("cudaMemcpyAsync",
        cudaMemcpyAsync(layers_, staged_inputs_.data(), inputs_bytes_, cudaMemcpyHostToDevice, stream_));
  run_timed(&fill_stage_, signature, [this] { enqueue_tables(); });
  if (!wait_for_it) return;
  const u64 experts = static_cast<u64>(shape_.experts);
  const DeviceLayer* const staged = reinterpret_cast<const DeviceLayer*>(staged_inputs_.data());
  char* const tokens = staged_tokens_.reserve(static_cast<u64>(count_) * experts * sizeof(i64));
  for (int32_t n = 0; n < count_; ++n) {
    check("cudaMemcpyAsync", cudaMemcpyAsync(tokens + static_cast<u64>(n) * experts * sizeof(i64), staged[n].expert_tokens,
                                             experts * sizeof(i64), cudaMemcpyDeviceToHost, stream_));
  }
  char* const back = results_.reserve(static_cast<u64>(count_) * sizeof(DeviceLayer));
  check("cudaMemcpyAsync", cudaMemcpyAsync(back, layers_, static_cast<u64>(count_) * sizeof(DeviceLayer),
                                           cudaMemcpyDeviceToHost, stream_));
  wait();
  std::memcpy(expert_tokens, tokens, static_cast<u64>(count_) * experts * sizeof(i64));
  for (int32_t n = 0; n < count_; ++n) shifts[n] = reinterpret_cast<const DeviceLayer*>(back)[n].scale.shift;
}

void Engine::forget_layers() {
  has_incumbent_ = false;
  walks_.clear();
  found_.clear();
  first_found_.clear();
  kept_placements_.clear();
  next_id_.clear();
  price_count_ = 0;
}

void Engine::stage_inputs(const PluginLayers& in) {
  Inputs staged, device;
  inputs_bytes_ = lay_out_inputs(in, nullptr, &staged);
  lay_out_inputs(in, staged_inputs_.reserve(inputs_bytes_), &staged);
  lay_out_inputs(in, inputs_.reserve(inputs_bytes_), &device);
  const u64 sources = static_cast<u64>(in.shape.sources);
  const u64 gpus = static_cast<u64>(in.shape.gpus);
  const u64 layer_tokens = sources * static_cast<u64>(in.shape.experts);
  copy_in(staged.compute_cost, in.shape.compute_cost, gpus);
  copy_in(staged.comm_cost, in.shape.comm_cost, sources * gpus);
  copy_in(staged.base, in.pattern.base, sources);
  copy_in(staged.first, in.pattern.first, gpus + 1);
  copy_in(staged.source, in.pattern.source, static_cast<u64>(in.exceptions));
  copy_in(staged.magnitude, in.pattern.magnitude, static_cast<u64>(in.exceptions));
  copy_in(staged.below, in.pattern.below, static_cast<u64>(in.exceptions));
  copy_in(staged.tokens, in.shape.tokens, static_cast<u64>(in.count) * layer_tokens);

  const bool uniform = in.uniform_compute != 0 && !in.shape.nearest;
  ArrayLayout size;
  DeviceLayer sizes;
  lay_out_tables(in.shape, uniform, &size, &sizes);
  char* const tables = tables_.reserve(size.bytes * static_cast<u64>(in.count));
  for (int32_t n = 0; n < in.count; ++n) {
    DeviceLayer layer;
    ArrayLayout layout{tables + size.bytes * static_cast<u64>(n)};
    lay_out_tables(in.shape, uniform, &layout, &layer);
    layer.fine = in.shape;
    layer.fine.tokens = device.tokens + static_cast<u64>(n) * layer_tokens;
    layer.fine.compute_cost = device.compute_cost;
    layer.fine.comm_cost = device.comm_cost;
    layer.fine.expert_tokens = layer.expert_tokens;
    layer.fine.comm = layer.comm;
    layer.weights = in.weights;
    layer.pattern = {device.base, device.first, device.source, device.magnitude, device.below};
    layer.view.stride = padded_gpus(in.shape.gpus);
    layer.uniform = uniform;
    layer.allow_duplicates = in.allow_duplicates != 0;
    std::memcpy(static_cast<void*>(staged.layers + n), &layer, sizeof(layer));
  }
  layers_ = device.layers;
  view_ = LayerView();
  view_.experts = in.shape.experts;
  view_.gpus = in.shape.gpus;
  view_.stride = padded_gpus(in.shape.gpus);
  view_.slots = in.shape.slots;
  view_.sources = in.shape.sources;
  view_.nearest = in.shape.nearest;
  view_.uniform_compute = uniform;
  view_.allow_duplicates = in.allow_duplicates != 0;
  view_.comm_term = search_scale(in.weights, 0).comm_term;
}

void Engine::enqueue_tables() {
  const DeviceLayer* const layers = layers_;
  const int32_t rows = shape_.nearest ? shape_.sources : shape_.gpus;
  run("sum_sources_kernel", sum_sources_kernel, grid(count_), kTableThreads, kTeamShared, stream_, layers);
  run("comm_rows_kernel", comm_rows_kernel, grid(shape_.gpus, count_), kTableThreads, kTeamShared, stream_, layers);
  run("scale_kernel", scale_kernel, grid(count_), kTableThreads, kTeamShared, stream_, layers_);
  run("table_rows_kernel", table_rows_kernel, grid(rows, count_), kTableThreads, kTeamShared, stream_, layers);
  run("table_experts_kernel", table_experts_kernel, grid((shape_.experts + kExpertsPerBlock - 1) / kExpertsPerBlock, count_),
      kTableThreads, kTeamShared, stream_, layers);
}

// ---- incumbents

void Engine::hold(const uint8_t* const* held, const int32_t* const* start, FineTerms* terms) {
  use_device();
  const u64 pairs = static_cast<u64>(shape_.experts) * static_cast<u64>(view_.stride);
  const u64 count = static_cast<u64>(count_);
  const auto lay_out = [&](char* memory, u8** held_at, i32** start_at) {
    ArrayLayout layout{memory};
    layout.place(held_at, count * pairs);
    layout.place(start_at, count * cells());
    return layout.bytes;
  };
  u8 *staged_held = nullptr, *device_held = nullptr;
  i32 *staged_start = nullptr, *device_start = nullptr;
  const u64 bytes = lay_out(nullptr, &staged_held, &staged_start);
  lay_out(staged_held_.reserve(bytes), &staged_held, &staged_start);
  lay_out(held_.reserve(bytes), &device_held, &device_start);
  for (u64 n = 0; n < count; ++n) {
    copy_in(staged_held + n * pairs, held[n], pairs);
    copy_in(staged_start + n * cells(), start[n], cells());
  }
  check("cudaMemcpyAsync", cudaMemcpyAsync(held_.data(), staged_held_.data(), bytes, cudaMemcpyHostToDevice, stream_));
  PriceScratch scratch;
  const u64 scratch_bytes = lay_out_price(shape_, nullptr, &scratch);
  char* const scratch_memory = price_scratch_.reserve(scratch_bytes * count);
  clock_.time(stream_, [&] {
    run("hold_kernel", hold_kernel, grid(count_), kTableThreads, kTeamShared, stream_, layers_,
        static_cast<const u8*>(device_held), static_cast<const i32*>(device_start), scratch_memory, scratch_bytes);
  });
  char* const back = results_.reserve(count * sizeof(DeviceLayer));
  check("cudaMemcpyAsync",
        cudaMemcpyAsync(back, layers_, count * sizeof(DeviceLayer), cudaMemcpyDeviceToHost, stream_));
  wait();
  kept_placements_.resize(count);
  next_id_.assign(count, 1);
  for (int32_t n = 0; n < count_; ++n) {
    terms[n] = reinterpret_cast<const DeviceLayer*>(back)[n].start_terms;
    const i32* const at = device_start + static_cast<u64>(n) * cells();
    kept_placements_[static_cast<size_t>(n)] = {{0, {at, nullptr, n, 1}}};
  }
  has_incumbent_ = true;
}

// ---- walks

const DevicePlacement& Engine::placement(int32_t layer, int32_t id) const {
  const auto& placements = kept_placements_[static_cast<size_t>(layer)];
  const auto at = std::lower_bound(placements.begin(), placements.end(), id,
                                   [](const Placement& p, int32_t wanted) { return p.id < wanted; });
  if (at == placements.end() || at->id != id) throw CudaError("placement", cudaErrorInvalidValue, "no placement has this id");
  return at->at;
}

void Engine::begin_walks(const PluginWalk* walks, int32_t count) {
  use_device();
  wait();  // whatever still reads the staged walks
  if (kept_placements_.empty()) {
    kept_placements_.resize(static_cast<size_t>(count_));
    next_id_.assign(static_cast<size_t>(count_), 0);
  }
  pack_placements();
  walks_.assign(walks, walks + count);
  const u64 padded = static_cast<u64>(view_.slots) * static_cast<u64>(view_.stride);
  const auto lay_out = [&](char* memory, DeviceWalk** walks_at, WalkProgress** progress_at, i32** expert_at) {
    ArrayLayout layout{memory};
    layout.place(walks_at, static_cast<u64>(count));
    layout.place(progress_at, static_cast<u64>(count));
    const u64 staged = layout.bytes;
    layout.place(expert_at, static_cast<u64>(count) * padded);
    return std::make_pair(staged, layout.bytes);
  };
  DeviceWalk* staged_walks = nullptr;
  WalkProgress* staged_progress = nullptr;
  i32* expert = nullptr;
  const auto [staged_bytes, bytes] = lay_out(nullptr, &staged_walks, &staged_progress, &expert);
  lay_out(staged_walks_.reserve(staged_bytes), &staged_walks, &staged_progress, &expert);
  lay_out(walk_data_.reserve(bytes), &device_walks_, &progress_, &expert);
  u64 kept_bytes = 0;
  Walker walker;
  for (const PluginWalk& walk : walks_) kept_bytes += lay_out_walker(view_, walk.frontier, nullptr, nullptr, &walker).kept;
  char* kept = kept_.reserve(kept_bytes);
  for (size_t w = 0; w < walks_.size(); ++w) {
    const PluginWalk& walk = walks_[w];
    DeviceWalk device;
    device.plan = walk.plan;
    device.layer = walk.layer;
    device.frontier = walk.frontier;
    device.start = walk.start < 0 ? nullptr : placement(walk.layer, walk.start).expert;
    device.expert = expert + w * padded;
    device.kept = kept;
    kept += lay_out_walker(view_, walk.frontier, nullptr, nullptr, &walker).kept;
    std::memcpy(static_cast<void*>(staged_walks + w), &device, sizeof(device));
    const WalkProgress none;
    std::memcpy(static_cast<void*>(staged_progress + w), &none, sizeof(none));
  }
  check("cudaMemcpyAsync",
        cudaMemcpyAsync(walk_data_.data(), staged_walks_.data(), staged_bytes, cudaMemcpyHostToDevice, stream_));
  lay_out_found();
}

void Engine::walk(int64_t until) {
  use_device();
  if (walks_.empty()) return;
  launch_walks(until);
  wait();
}

WalkKind Engine::walk_kind() const {
  if (view_.nearest) return WalkKind::kNearest;
  const bool is_first = view_.uniform_compute && !view_.allow_duplicates && view_.comm_term == CommTerm::kUnit && !has_incumbent_;
  return is_first ? WalkKind::kFirst : WalkKind::kAny;
}

void Engine::launch_walks(int64_t until) {
  Walker walker;
  const u64 work_bytes = lay_out_walker(view_, 0, nullptr, nullptr, &walker).work;
  const size_t shared = kTeamShared + work_bytes;
  const int32_t count = static_cast<int32_t>(walks_.size());
  const int32_t walks_by_memory = static_cast<int32_t>(limits_.shared_bytes_per_multiprocessor / (shared + kReservedShared));
  const int32_t usual_threads = cuda::walk_threads(walk_kind(), view_.slots, view_.stride, walks_by_memory);
  WalkArguments arguments{layers_, device_walks_, progress_, nullptr, work_bytes, until};
  if (shared <= static_cast<size_t>(limits_.shared_bytes_per_block)) {
    const WalkKind kind = walk_kind();
    const auto kernel = kind == WalkKind::kFirst ? walk_kernel<WalkKind::kFirst, true>
                        : kind == WalkKind::kAny ? walk_kernel<WalkKind::kAny, true>
                                                 : walk_kernel<WalkKind::kNearest, true>;
    Signature signature;
    signature.add(layers_).add(device_walks_).add(progress_).add(shared).add(until).add(count).add(kind).add(usual_threads);
    run_timed(&walk_stage_, signature, [&] {
      run("walk_kernel", kernel, grid(count), usual_threads, shared, stream_, arguments);
    });
    return;
  }
  // Too large for shared memory: the work lies in global memory, for some walks at a time.
  const auto kernel = view_.nearest ? walk_kernel<WalkKind::kNearest, false> : walk_kernel<WalkKind::kAny, false>;
  arguments.work = work_.reserve(work_bytes * static_cast<u64>(std::min(count, kMostGlobalWalks)));
  clock_.time(stream_, [&] {
    for (int32_t first = 0; first < count; first += kMostGlobalWalks) {
      arguments.walks = device_walks_ + first;
      arguments.progress = progress_ + first;
      run("walk_kernel", kernel, grid(std::min(kMostGlobalWalks, count - first)), usual_threads, kTeamShared, stream_, arguments);
    }
  });
}

// ---- what the walks found

// Lists where the walks' placements will lie, by layer, walk and frontier entry.
void Engine::lay_out_found() {
  found_.clear();
  first_found_.assign(static_cast<size_t>(count_) + 1, 0);
  const DeviceWalk* const staged = reinterpret_cast<const DeviceWalk*>(staged_walks_.data());
  for (size_t w = 0; w < walks_.size(); ++w) {
    Walker walker;
    lay_out_walker(view_, walks_[w].frontier, nullptr, staged[w].kept, &walker);
    const int32_t layer = walks_[w].layer;
    const u64 padded = static_cast<u64>(view_.slots) * static_cast<u64>(view_.stride);
    if (walks_[w].frontier == 0) found_.push_back({walker.best_expert, nullptr, layer, 0});
    for (int32_t m = 0; m < walks_[w].frontier; ++m) {
      found_.push_back({walker.frontier_expert + static_cast<u64>(m) * padded, walker.frontier_value + m, layer, 0});
    }
    first_found_[static_cast<size_t>(layer) + 1] = static_cast<int32_t>(found_.size());
  }
  for (size_t n = 1; n < first_found_.size(); ++n) first_found_[n] = std::max(first_found_[n], first_found_[n - 1]);
}

// Prices all of found_. What best() needs of memory is laid out along with it.
void Engine::price_all() {
  const u64 found = found_.size();
  const u64 count = static_cast<u64>(count_);
  DevicePlacement* staged_found = nullptr;
  DeviceChoice* staged_choices = nullptr;
  const auto lay_out = [&](char* memory, DevicePlacement** found_at, DeviceChoice** choices_at) {
    ArrayLayout layout{memory};
    layout.place(found_at, found);
    layout.place(choices_at, count);
    const u64 staged = layout.bytes;
    layout.place(&device_chosen_, count * cells());
    layout.place(&device_terms_, found);
    return std::make_pair(staged, layout.bytes);
  };
  const std::pair<u64, u64> sizes = lay_out(nullptr, &staged_found, &staged_choices);
  const u64 staged_bytes = sizes.first;
  lay_out(staged_found_.reserve(staged_bytes), &staged_found, &staged_choices);
  lay_out(found_data_.reserve(sizes.second), &device_found_, &device_choices_);
  copy_in(staged_found, found_.data(), found);
  for (u64 n = 0; n < count; ++n) {
    DeviceChoice choice;
    choice.first = first_found_[n];
    choice.count = first_found_[n + 1] - first_found_[n];
    std::memcpy(static_cast<void*>(staged_choices + n), &choice, sizeof(choice));
  }
  PriceScratch scratch;
  const u64 scratch_bytes = lay_out_price(shape_, nullptr, &scratch);
  const size_t shared = kTeamShared + scratch_bytes;
  const bool fits = shared <= static_cast<size_t>(limits_.shared_bytes_per_block);
  // Without shared memory some at a time, since their scratch is memory of the device.
  const u64 at_once = fits ? std::max<u64>(found, 1) : std::min<u64>(found, 4096);
  char* const scratch_memory = fits ? nullptr : price_scratch_.reserve(scratch_bytes * at_once);
  const auto kernel = fits ? price_kernel<true> : price_kernel<false>;
  Signature signature;
  signature.add(layers_).add(device_found_).add(found);
  signature.add(scratch_memory).add(scratch_bytes).add(count_).add(cells());
  check("cudaMemcpyAsync", cudaMemcpyAsync(device_found_, staged_found, staged_bytes, cudaMemcpyHostToDevice, stream_));
  run_timed(&best_stage_, signature, [&] {
    for (u64 first = 0; first < found; first += at_once) {
      const PriceArguments arguments{layers_, device_found_ + first, device_terms_ + first, scratch_memory, scratch_bytes};
      run("price_kernel", kernel, grid(static_cast<int64_t>(std::min(at_once, found - first))), kPriceThreads,
          fits ? shared : kTeamShared, stream_, arguments);
    }
  });
}

void Engine::best(PluginFound* found, int32_t* placements) {
  use_device();
  wait();
  price_all();
  clock_.time(stream_, [&] {
    run("choose_kernel", choose_kernel, grid(count_), kTableThreads, kTeamShared, stream_,
        static_cast<const DeviceLayer*>(layers_), static_cast<const DevicePlacement*>(device_found_),
        static_cast<const FineTerms*>(device_terms_), device_choices_, device_chosen_);
  });
  // The choices and the chosen placements lie side by side: one copy brings both.
  const u64 bytes = static_cast<u64>(reinterpret_cast<char*>(device_chosen_ + static_cast<u64>(count_) * cells()) -
                                     reinterpret_cast<char*>(device_choices_));
  char* const back = results_.reserve(bytes);
  check("cudaMemcpyAsync", cudaMemcpyAsync(back, device_choices_, bytes, cudaMemcpyDeviceToHost, stream_));
  wait();
  const DeviceChoice* const choices = reinterpret_cast<const DeviceChoice*>(back);
  for (int32_t n = 0; n < count_; ++n) {
    int32_t& next_id = next_id_[static_cast<size_t>(n)];
    found[n].layer = n;
    found[n].id = choices[n].best < 0 ? 0 : next_id + choices[n].best;
    found[n].terms = choices[n].terms;
    if (choices[n].best >= 0) {
      const DevicePlacement& at = found_[static_cast<size_t>(choices[n].first + choices[n].best)];
      kept_placements_[static_cast<size_t>(n)].push_back({found[n].id, at});
    }
    next_id += choices[n].count;
  }
  const char* const chosen = back + (reinterpret_cast<char*>(device_chosen_) - reinterpret_cast<char*>(device_choices_));
  std::memcpy(placements, chosen, static_cast<u64>(count_) * cells() * sizeof(i32));
}

int64_t Engine::found(PluginFound* found, int64_t capacity) {
  use_device();
  wait();
  price_all();
  const u64 bytes = found_.size() * sizeof(FineTerms);
  char* const back = results_.reserve(bytes);
  check("cudaMemcpyAsync", cudaMemcpyAsync(back, device_terms_, bytes, cudaMemcpyDeviceToHost, stream_));
  wait();
  const FineTerms* const terms = reinterpret_cast<const FineTerms*>(back);
  int64_t count = 0;
  for (size_t i = 0; i < found_.size(); ++i) {
    if (terms[i].load_max < 0) continue;
    const size_t layer = static_cast<size_t>(found_[i].layer);
    const int32_t id = next_id_[layer]++;
    kept_placements_[layer].push_back({id, found_[i]});
    if (count < capacity) found[count] = {found_[i].layer, id, terms[i]};
    ++count;
  }
  return count;
}

// ---- placements by id

// New walks overwrite what older ones kept: what has an id moves to the pool.
void Engine::pack_placements() {
  std::vector<int32_t> ids, counts;
  bool unpacked = false;
  for (const auto& placements : kept_placements_) {
    counts.push_back(static_cast<int32_t>(placements.size()));
    for (const Placement& p : placements) {
      ids.push_back(p.id);
      unpacked = unpacked || p.at.packed == 0;
    }
  }
  if (unpacked) keep(ids.data(), counts.data());
}

void Engine::keep(const int32_t* ids, const int32_t* counts) {
  use_device();
  std::vector<DeviceCopy> copies;
  u64 total = 0;
  for (int32_t n = 0; n < count_; ++n) total += static_cast<u64>(counts[n]);
  i32* to = reinterpret_cast<i32*>(pools_[pool_ ^ 1].reserve(total * cells() * sizeof(i32)));
  std::vector<std::vector<Placement>> kept(static_cast<size_t>(count_));
  for (int32_t n = 0; n < count_; ++n) {
    for (int32_t i = 0; i < counts[n]; ++i, to += cells()) {
      const int32_t id = *ids++;
      copies.push_back({placement(n, id), to});
      kept[static_cast<size_t>(n)].push_back({id, {to, nullptr, n, 1}});
    }
  }
  copy_placements(copies);
  wait();
  kept_placements_ = std::move(kept);
  pool_ ^= 1;
}

void Engine::fetch(const int32_t* ids, int32_t* placements) {
  use_device();
  std::vector<DeviceCopy> copies;
  i32* const to = reinterpret_cast<i32*>(found_data_.reserve(static_cast<u64>(count_) * cells() * sizeof(i32)));
  for (int32_t n = 0; n < count_; ++n) {
    if (ids[n] >= 0) copies.push_back({placement(n, ids[n]), to + static_cast<u64>(n) * cells()});
  }
  copy_placements(copies);
  const u64 bytes = static_cast<u64>(count_) * cells() * sizeof(i32);
  check("cudaMemcpyAsync", cudaMemcpyAsync(results_.reserve(bytes), to, bytes, cudaMemcpyDeviceToHost, stream_));
  wait();
  std::memcpy(placements, results_.data(), bytes);
}

// Sets out copies of placements on the device.
void Engine::copy_placements(const std::vector<DeviceCopy>& copies) {
  if (copies.empty()) return;
  wait();  // whatever still reads the staged copies
  const u64 bytes = copies.size() * sizeof(DeviceCopy);
  char* const staged = staged_copies_.reserve(bytes);
  char* const device = copies_.reserve(bytes);
  std::memcpy(staged, copies.data(), bytes);
  check("cudaMemcpyAsync", cudaMemcpyAsync(device, staged, bytes, cudaMemcpyHostToDevice, stream_));
  clock_.time(stream_, [&] {
    run("copy_kernel", copy_kernel, grid(static_cast<int64_t>(copies.size())), kTableThreads, kTeamShared, stream_,
        static_cast<const DeviceLayer*>(layers_), reinterpret_cast<const DeviceCopy*>(device));
  });
}

// ---- bounds

void Engine::prove(const int64_t* prices, int32_t price_count, int32_t iterations) {
  use_device();
  wait_for_bounds();  // the last ones' staged prices
  price_count_ = price_count;
  const u64 bounds = static_cast<u64>(price_count) * static_cast<u64>(count_);
  BoundScratch scratch;
  const u64 scratch_bytes = lay_out_bound(view_.stride, view_.experts, nullptr, &scratch);
  i64 *device_prices = nullptr, *device_bounds = nullptr;
  char* device_scratch = nullptr;
  const auto lay_out = [&](char* memory) {
    ArrayLayout layout{memory};
    layout.place(&device_prices, static_cast<u64>(price_count));
    layout.place(&device_bounds, bounds);
    layout.place(&device_scratch, scratch_bytes * bounds);
    return layout.bytes;
  };
  lay_out(bound_data_.reserve(lay_out(nullptr)));
  char* const staged = staged_prices_.reserve(static_cast<u64>(price_count) * sizeof(i64));
  char* const back = staged_bounds_.reserve(bounds * sizeof(i64));
  std::memcpy(staged, prices, static_cast<u64>(price_count) * sizeof(i64));
  Signature signature;
  signature.add(layers_).add(device_prices).add(staged).add(back).add(price_count).add(count_).add(iterations).add(scratch_bytes);
  check("cudaEventRecord", cudaEventRecord(tables_done_.get(), stream_));
  check("cudaStreamWaitEvent", cudaStreamWaitEvent(bound_stream_, tables_done_.get(), 0));
  const auto enqueue = [&] {
    check("cudaMemcpyAsync", cudaMemcpyAsync(device_prices, staged, static_cast<u64>(price_count) * sizeof(i64),
                                             cudaMemcpyHostToDevice, bound_stream_));
    const BoundArguments arguments{layers_, device_prices, device_bounds, device_scratch, scratch_bytes, iterations};
    run("bound_kernel", bound_kernel, grid(count_, price_count), kTableThreads, kTeamShared, bound_stream_, arguments);
    check("cudaMemcpyAsync", cudaMemcpyAsync(back, device_bounds, bounds * sizeof(i64), cudaMemcpyDeviceToHost, bound_stream_));
  };
  bound_stage_.prepare(bound_stream_, signature, enqueue);
  bound_stage_.go(bound_stream_, enqueue);
}

void Engine::bounds(int64_t* bounds) {
  use_device();
  wait_for_bounds();
  std::memcpy(bounds, staged_bounds_.data(), static_cast<u64>(price_count_) * static_cast<u64>(count_) * sizeof(i64));
}

// ---- candidates

// The layer's table and the warps' scratch lie in shared memory where they fit, with as many warps as fit beside the table;
// else the scratch alone; else neither.
EvaluateLaunch Engine::evaluate_launch(size_t scratch_bytes) const {
  constexpr int32_t kLeastWarps = 4;
  const size_t most = static_cast<size_t>(limits_.shared_bytes_per_block);
  const size_t table =
      shape_.nearest ? most : (static_cast<size_t>(shape_.gpus) + 1) * static_cast<size_t>(shape_.experts) * sizeof(i64) + 128;
  const auto warps_beside = [&](size_t bytes) {
    const size_t fit = bytes < most ? (most - bytes) / scratch_bytes : 0;
    return static_cast<int32_t>(std::min<size_t>(fit, kEvaluateThreads / kWarp));
  };
  EvaluateLaunch launch;
  launch.table_fits = warps_beside(table) >= kLeastWarps;
  launch.scratch_fits = launch.table_fits || warps_beside(0) >= kLeastWarps;
  int32_t warps = launch.table_fits ? warps_beside(table) : launch.scratch_fits ? warps_beside(0) : kTableThreads / kWarp;
  if (forced_threads_ > 0) warps = std::min(warps, forced_threads_ / kWarp);
  launch.threads = warps * kWarp;
  const size_t scratch = launch.scratch_fits ? scratch_bytes * static_cast<size_t>(launch.threads / kWarp) : 0;
  launch.shared_bytes = std::max<size_t>((launch.table_fits ? table : 0) + scratch, kTeamShared);
  launch.blocks_per_multiprocessor = static_cast<int32_t>(std::max<size_t>(
      1, std::min<size_t>(static_cast<size_t>(limits_.shared_bytes_per_multiprocessor) / (launch.shared_bytes + kReservedShared),
                          static_cast<size_t>(kEvaluateThreads / launch.threads))));
  return launch;
}

void Engine::evaluate(const int32_t* candidates, int64_t count, int64_t layer_stride, int64_t first_layer,
                      const LiveGpus& live, FineTerms* terms, int32_t* bad_slot) {
  use_device();
  wait();
  const u64 width = static_cast<u64>(live.all_gpus) * static_cast<u64>(shape_.slots);
  const u64 row = width * static_cast<u64>(count_);
  const u64 all_gpus = static_cast<u64>(live.all_gpus);
  const int64_t most = std::max<int64_t>(1, static_cast<int64_t>(kCandidateBytes / (row * sizeof(i32))));
  struct Half {
    i32* live_index = nullptr;
    i32* candidates = nullptr;
    FineTerms* terms = nullptr;
    i32* bad_slot = nullptr;
    int64_t first = 0;
    int64_t count = 0;
  };
  Half staged[2], device[2];
  const auto lay_out = [&](char* memory, Half* half) {
    const u64 cells = static_cast<u64>(std::min(most, count)) * static_cast<u64>(count_);
    ArrayLayout layout{memory};
    layout.place(&half->live_index, all_gpus);
    layout.place(&half->candidates, static_cast<u64>(std::min(most, count)) * row);
    layout.place(&half->terms, cells);
    layout.place(&half->bad_slot, cells);
    return layout.bytes;
  };
  for (int h = 0; h < 2; ++h) {
    const u64 bytes = lay_out(nullptr, &staged[h]);
    lay_out(staged_candidates_[h].reserve(bytes), &staged[h]);
    lay_out(candidates_[h].reserve(bytes), &device[h]);
  }
  const auto collect = [&](Half& half) {
    const u64 cells = static_cast<u64>(half.count) * static_cast<u64>(count_);
    const u64 at = static_cast<u64>(half.first) * static_cast<u64>(count_);
    copy_in(terms + at, half.terms, cells);
    copy_in(bad_slot + at, half.bad_slot, cells);
    half.count = 0;
  };
  PriceScratch scratch;
  const u64 scratch_bytes = lay_out_price(shape_, nullptr, &scratch);
  const EvaluateLaunch shape = evaluate_launch(scratch_bytes);
  const int64_t warps = shape.threads / kWarp;
  // As many blocks as the device holds at once: each brings the layer's table over, for all of its candidates.
  const int64_t blocks_wanted =
      std::max<int64_t>(1, int64_t{shape.blocks_per_multiprocessor} * limits_.multiprocessors / count_);

  int turn = 0;
  for (int64_t first = 0; first < count; first += most, turn ^= 1) {
    Half& half = staged[turn];
    if (half.count > 0) {
      check("cudaEventSynchronize", cudaEventSynchronize(half_done_[turn].get()));
      collect(half);
    }
    half.first = first;
    half.count = std::min(most, count - first);
    copy_in(half.live_index, live.live_index, all_gpus);
    for (int64_t c = 0; c < half.count; ++c) {
      copy_in(half.candidates + static_cast<u64>(c) * row,
              candidates + static_cast<u64>((first + c) * layer_stride + first_layer) * width, row);
    }
    const u64 in_bytes = static_cast<u64>(reinterpret_cast<char*>(half.candidates + static_cast<u64>(half.count) * row) -
                                          reinterpret_cast<char*>(half.live_index));
    check("cudaMemcpyAsync",
          cudaMemcpyAsync(device[turn].live_index, half.live_index, in_bytes, cudaMemcpyHostToDevice, stream_));
    const int64_t blocks = std::min(blocks_wanted, (half.count + warps - 1) / warps);
    EvaluateArguments arguments{layers_,
                                device[turn].candidates,
                                {live.all_gpus, live.all_gpus == shape_.gpus ? nullptr : device[turn].live_index},
                                device[turn].terms,
                                device[turn].bad_slot,
                                nullptr,
                                scratch_bytes,
                                static_cast<i32>(half.count),
                                count_};
    if (!shape.scratch_fits) {
      arguments.scratch = evaluate_scratch_.reserve(scratch_bytes * static_cast<u64>(warps * blocks_wanted * count_));
    }
    const auto kernel = shape.table_fits     ? evaluate_kernel<true, true>
                        : shape.scratch_fits ? evaluate_kernel<false, true>
                                             : evaluate_kernel<false, false>;
    clock_.time(stream_, [&] {
      launch("evaluate_kernel", kernel, grid(blocks, count_), shape.threads, shape.shared_bytes, stream_, arguments);
    });
    const u64 out_bytes = static_cast<u64>(reinterpret_cast<char*>(half.bad_slot) - reinterpret_cast<char*>(half.terms)) +
                          static_cast<u64>(half.count) * static_cast<u64>(count_) * sizeof(i32);
    check("cudaMemcpyAsync",
          cudaMemcpyAsync(half.terms, device[turn].terms, out_bytes, cudaMemcpyDeviceToHost, stream_));
    check("cudaEventRecord", cudaEventRecord(half_done_[turn].get(), stream_));
  }
  wait();
  for (Half& half : staged) {
    if (half.count > 0) collect(half);
  }
}

// ---- scores

void Engine::score(const EngineColumns& engines, const RequestColumns& requests, int64_t* pressure_us, int32_t* best) {
  use_device();
  wait();  // whatever still reads the staged columns
  ScoreArguments staged, device;
  const ScoreBytes bytes = lay_out_scores(engines, requests, nullptr, false, &staged);
  char* const host_memory = staged_scores_.reserve(bytes.all);
  char* const device_memory = score_data_.reserve(bytes.all);
  lay_out_scores(engines, requests, host_memory, true, &staged);
  lay_out_scores(engines, requests, device_memory, false, &device);
  check("cudaMemcpyAsync", cudaMemcpyAsync(device_memory, host_memory, bytes.in, cudaMemcpyHostToDevice, stream_));
  const int32_t block_threads = threads(score_kernel, kTableThreads);
  const int64_t warps = block_threads / kWarp;
  clock_.time(stream_, [&] {
    launch("score_kernel", score_kernel, grid((requests.count + warps - 1) / warps), block_threads, 0, stream_, device);
  });
  check("cudaMemcpyAsync", cudaMemcpyAsync(host_memory + bytes.in, device_memory + bytes.in, bytes.all - bytes.in,
                                           cudaMemcpyDeviceToHost, stream_));
  wait();
  copy_in(pressure_us, staged.pressure_us, static_cast<u64>(requests.count) * static_cast<u64>(engines.count));
  copy_in(best, staged.best, static_cast<u64>(requests.count));
}

}  // namespace cuda
}  // namespace gimbal
