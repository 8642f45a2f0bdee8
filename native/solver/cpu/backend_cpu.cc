// The CPU backend: one core per task, vectors across candidates, the instruction set chosen when the process starts.
// All of its memory is sized here; the kernels only fill it.
#include <cstdlib>
#include <cstring>
#include <string>

#include "../../spec/tables.h"
#include "../backend.h"
#include "../registry.h"
#include "kernels.h"

namespace gimbal {
namespace {

// GIMBAL_CPU=portable|x86-64-v3|x86-64-v4 lowers the choice, for tests and for finding faults.
const CpuKernels& choose_kernels() {
#if defined(GIMBAL_X86_KERNELS)
  const char* forced = std::getenv("GIMBAL_CPU");
  const bool portable = forced != nullptr && std::strcmp(forced, "portable") == 0;
  const bool only_v3 = forced != nullptr && std::strcmp(forced, "x86-64-v3") == 0;
  if (!portable && !only_v3 && __builtin_cpu_supports("x86-64-v4")) return kernels_v4();
  if (!portable && __builtin_cpu_supports("x86-64-v3")) return kernels_v3();
#endif
  return kernels_base();
}

constexpr size_t kAlignment = 64;

template <class T>
T* aligned(T* p) {
  const size_t past = reinterpret_cast<uintptr_t>(p) % kAlignment;
  return past == 0 ? p : p + (kAlignment - past) / sizeof(T);
}

// Hands out the search tables from `arena`, each aligned to a whole vector; with null only counts the cells.
class TableArena {
 public:
  explicit TableArena(int32_t* arena) : arena_(arena) {}
  int32_t* take(size_t cells) {
    int32_t* here = arena_ == nullptr ? nullptr : arena_ + cells_;
    cells_ += (cells + 15) / 16 * 16;
    return here;
  }
  size_t cells() const { return cells_; }

 private:
  int32_t* arena_;
  size_t cells_ = 0;
};

spec::SearchTables lay_out_tables(const spec::FineLayer& fine, bool uniform, TableArena* arena) {
  const size_t experts = static_cast<size_t>(fine.experts);
  const size_t gpus = static_cast<size_t>(fine.gpus);
  const size_t stride = static_cast<size_t>(spec::padded_gpus(fine.gpus));
  const size_t sources = fine.nearest ? static_cast<size_t>(fine.sources) : 0;
  spec::SearchTables t;
  t.load = arena->take(uniform ? experts : experts * stride);
  t.load_t = uniform ? t.load : arena->take(gpus * experts);
  t.comm = arena->take(experts * stride);
  t.comm_t = arena->take(gpus * experts);
  t.source_load = arena->take(sources * experts);
  t.source_comm = arena->take(sources * experts);
  t.compute_factor = reinterpret_cast<uint32_t*>(arena->take(fine.nearest ? stride : 0));
  t.comm_factor = reinterpret_cast<uint32_t*>(arena->take(sources * stride));
  t.distance = reinterpret_cast<uint32_t*>(arena->take(sources * stride));
  return t;
}

struct Scratch {
  std::vector<int64_t> wide;
  std::vector<int32_t> narrow;
};

Scratch& thread_scratch(size_t wide, size_t narrow) {
  static thread_local Scratch scratch;
  if (scratch.wide.size() < wide) scratch.wide.resize(wide);
  if (scratch.narrow.size() < narrow) scratch.narrow.resize(narrow);
  return scratch;
}

class BackendCpu final : public Backend {
 public:
  BackendCpu() : kernels_(choose_kernels()) {}

  std::string name() const override { return "cpu"; }
  std::string detail() const override { return kernels_.name; }

  void fill_tables(const spec::FineLayer& fine, const spec::FineWeights& weights, const CommPattern& pattern,
                   bool uniform_compute, bool allow_duplicates, LayerTables* out) override {
    const size_t experts = static_cast<size_t>(fine.experts);
    out->fine = fine;
    out->expert_tokens.resize(experts);
    out->comm_fine.resize(static_cast<size_t>(fine.gpus) * experts);
    // `nearest` prices every (expert, GPU) pair by its sources, so it needs the full load table even on equal GPUs.
    const bool uniform = uniform_compute && !fine.nearest;
    TableArena count(nullptr);
    lay_out_tables(fine, uniform, &count);
    const size_t cells = count.cells() + kAlignment / sizeof(int32_t);
    if (out->arena.size() < cells) out->arena.resize(cells);
    TableArena arena(aligned(out->arena.data()));
    const spec::SearchTables tables = lay_out_tables(fine, uniform, &arena);
    kernels_.fill_tables(weights, pattern.view(), uniform, tables, out->expert_tokens.data(), out->comm_fine.data(),
                         thread_scratch(2 * experts, 0).wide.data(), &out->fine, &out->scale);
    out->view = spec::view_of(fine, tables, out->scale, uniform, allow_duplicates);
  }

  bool walk(std::vector<WalkTask*>& tasks, int64_t until, Threads& threads, const std::atomic<bool>* cancel,
            const std::function<void()>& on_task) override {
    std::atomic<bool> finished{true};
    threads.parallel_for(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
      // After a cancellation not even a start is built: there may be thousands of tasks.
      const bool stop = cancel != nullptr && cancel->load(std::memory_order_relaxed);
      if (stop || !walk_one(tasks[static_cast<size_t>(i)], until, cancel)) finished.store(false);
      if (on_task) on_task();
    });
    return finished.load();
  }

  void evaluate(const LayerTables& tables, const int32_t* placements, int64_t count, int64_t stride,
                spec::FineTerms* terms) override {
    const spec::FineLayer& fine = tables.fine;
    const size_t cells = static_cast<size_t>(fine.gpus) * static_cast<size_t>(fine.slots);
    Scratch& scratch =
        thread_scratch(2 * static_cast<size_t>(fine.gpus), static_cast<size_t>(fine.experts) + 1 + cells);
    kernels_.evaluate(fine, placements, count, stride, scratch.narrow.data(), scratch.wide.data(), terms);
  }

  int64_t bound(const LayerTables& tables, const spec::FineWeights& weights, int64_t migration,
                int32_t iterations) override {
    const size_t stride = static_cast<size_t>(tables.view.stride);
    const size_t experts = static_cast<size_t>(tables.view.experts);
    Scratch& scratch = thread_scratch(9 * stride + 2 * experts, stride + experts);
    return kernels_.bound(tables.view, tables.fine, weights, tables.scale.shift, migration, iterations,
                          scratch.wide.data(), scratch.narrow.data());
  }

 private:
  bool walk_one(WalkTask* task, int64_t until, const std::atomic<bool>* cancel) {
    const spec::LayerView& view = task->tables->view;
    const bool fresh = task->steps_done < 0;
    if (fresh) {
      const size_t bytes = spec::lay_out_walker(view, task->frontier, nullptr, &task->state) + kAlignment;
      if (task->memory.size() < bytes) task->memory.resize(bytes);
      spec::lay_out_walker(view, task->frontier, aligned(task->memory.data()), &task->state);
      task->best.resize(static_cast<size_t>(view.gpus) * static_cast<size_t>(view.slots));
      task->steps_done = 0;
    }
    return kernels_.walk(task, fresh, until, cancel);
  }

  const CpuKernels& kernels_;
};

}  // namespace

Backend& cpu_backend() {
  static BackendCpu backend;
  return backend;
}

}  // namespace gimbal
