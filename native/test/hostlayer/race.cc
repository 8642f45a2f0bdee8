// For every four bytes of device memory a cell remembers the last plain write and, since then, two reads and two atomic
// operations, each with its thread, its epoch and its place in the code. An epoch is what lies between two barriers of one
// block; the number tells block, launch and order at once, so old entries need not be cleared. Accesses to parts of a word
// split its cell in four.
//
// Two accesses conflict when different threads make them, one is a plain write or exactly one of them is atomic, and nothing
// orders them: they fall into one epoch of one block (and, inside a warp, no synchronisation of lanes came between), or into
// two blocks of one launch. That needs no unlucky schedule: whichever of the two comes first, the other finds its entry.
#include "race.h"

#include <sys/mman.h>
#if defined(__ELF__)
#include <link.h>
#endif

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "memory.h"
#include "world.h"

namespace hostlayer {
namespace {

struct Record {
  uint32_t epoch = 0;  // 0: no access
  uint32_t who = 0;    // thread, stamp, kind
  int32_t code = 0;    // the place, relative to this library's own code; 0 where it is too far away
};

constexpr uint32_t kThreadBits = 10;
constexpr uint32_t kStampBits = 20;
static_assert(kMaxThreads == 1 << kThreadBits, "a record holds any thread of a block");
static_assert(kMaxStamp < 1u << kStampBits, "a record holds any stamp");

int thread_of(const Record& r) { return static_cast<int>(r.who & (kMaxThreads - 1)); }
uint32_t stamp_of(const Record& r) { return r.who >> kThreadBits & ((1u << kStampBits) - 1); }
Access kind_of(const Record& r) { return static_cast<Access>(r.who >> (kThreadBits + kStampBits)); }

struct alignas(64) Cell {
  Record write;
  Record reads[2];
  Record atomics[2];
  uint32_t split = 0;  // index into `splits` plus one: the cells of the four bytes
};
static_assert(sizeof(Cell) == kCheckBytesPerWord, "address space is reserved for so much");

struct Split {
  Cell bytes[kWordBytes];
};

constexpr size_t kMostSplits = size_t{1} << 18;  // kept from one launch to the next
constexpr uint32_t kLastEpoch = 0xf0000000u;     // no launch starts beyond

Cell* cells = nullptr;  // [words of the device range], zero until touched
std::vector<Split>& splits = *new std::vector<Split>;
int64_t last_unknown = 0;  // allocations up to this one were there when a kernel ran that does not tell what it writes

// What the short way needs of the running launch.
bool all_checks_on = false;
size_t heap_offset = 0;  // of its device, from the start of the device range
size_t heap_bytes = 0;

const char kAnchor = 0;

int32_t code_of(const void* pc) {
  const intptr_t distance = reinterpret_cast<intptr_t>(pc) - reinterpret_cast<intptr_t>(&kAnchor);
  return distance >= INT32_MIN && distance <= INT32_MAX ? static_cast<int32_t>(distance) : 0;
}

const void* pc_of(const Record& r) {
  return r.code == 0 ? nullptr : reinterpret_cast<const void*>(reinterpret_cast<intptr_t>(&kAnchor) + r.code);
}

// The access that is being checked.
struct Present {
  Record record;
  Access access;
  uint32_t oldest;  // entries of earlier epochs are ordered before it, or of another block that is over
  bool shared;
  uintptr_t address;
  size_t bytes;
  const void* pc;
};

[[noreturn]] void fail(FaultKind kind, const Present& p, const Record* other) {
  Fault fault;
  fault.kind = kind;
  fault.address = p.address;
  fault.bytes = p.bytes;
  fault.mine = AccessSide{p.access, execution.current(), execution.block_number(), p.pc};
  if (other != nullptr) {
    fault.other = AccessSide{kind_of(*other), thread_of(*other), execution.block_of_epoch(other->epoch), pc_of(*other)};
  }
  execution.fail(fault);
}

// Whether the entry's access comes before the present one by synchronisation (or is of the same thread).
inline bool ordered(const Record& r, const Present& p) {
  if (r.epoch != p.record.epoch) return r.epoch < p.oldest || r.epoch >= execution.block_epoch();
  const int mine = thread_of(p.record);
  const int other = thread_of(r);
  if (mine == other) return true;
  if (mine / kLanes != other / kLanes) return false;
  const Warp& warp = execution.warp_of(mine);
  return stamp_of(r) < (warp.partial ? warp.seen[mine % kLanes][other % kLanes] : warp.all_seen);
}

// Whether the entries are of threads that no synchronisation of one warp orders at once.
inline bool far_apart(const Record& a, const Record& b) {
  if (a.epoch != b.epoch) return (a.epoch < execution.block_epoch()) != (b.epoch < execution.block_epoch());
  return thread_of(a) / kLanes != thread_of(b) / kLanes;
}

// Two entries stand for all reads (or all atomic operations) since the last plain write. An entry that comes before the new
// one says nothing more. Of others, two that are far apart are kept: whichever thread writes next, one of them is not
// ordered before it. Within one warp the newest are kept: if they are ordered before a write, so are the older ones, unless
// parts of the warp have synchronised on their own.
void remember(Record* kept, const Present& p) {
  for (int i = 0; i < 2; ++i) {
    if (!ordered(kept[i], p)) continue;
    kept[i] = p.record;
    Record& second = kept[1 - i];
    if (second.epoch != 0 && ordered(second, p)) second = Record{};
    return;
  }
  if (far_apart(kept[0], kept[1])) return;
  kept[stamp_of(kept[0]) <= stamp_of(kept[1]) ? 0 : 1] = p.record;
}

inline bool same(const Record& a, const Record& b) { return a.epoch == b.epoch && a.who == b.who; }

inline void check_against(const Record* entries, int count, const Present& p) {
  for (int i = 0; i < count; ++i) {
    if (!ordered(entries[i], p)) fail(FaultKind::kRace, p, &entries[i]);
  }
}

inline void check_cell(Cell* cell, const Present& p) {
  Record* const reads = cell->reads;
  Record* const atomics = cell->atomics;
  if (p.access == Access::kWrite) {
    const bool alone = (reads[0].epoch | reads[1].epoch | atomics[0].epoch | atomics[1].epoch) == 0;
    if (alone && same(cell->write, p.record)) return;
    check_against(&cell->write, 1, p);
    if (!alone) {
      check_against(reads, 2, p);
      check_against(atomics, 2, p);
      reads[0] = reads[1] = atomics[0] = atomics[1] = Record{};
    }
    cell->write = p.record;
    return;
  }
  Record* const alike = p.access == Access::kRead ? reads : atomics;
  if (same(alike[0], p.record) || same(alike[1], p.record)) return;
  check_against(&cell->write, 1, p);
  check_against(p.access == Access::kRead ? atomics : reads, 2, p);
  remember(alike, p);
}

void split_cell(Cell* cell) {
  Split parts;
  for (Cell& part : parts.bytes) part = *cell;
  splits.push_back(parts);
  cell->split = static_cast<uint32_t>(splits.size());
}

// `bytes` has a bit for each byte of the word.
inline void check_word(size_t word, uint8_t bytes, const Present& p) {
  Cell* const cell = &cells[word];
  if (cell->split == 0) {
    if (bytes == kLive) {
      check_cell(cell, p);
      return;
    }
    split_cell(cell);
  }
  const uint32_t split = cell->split - 1;
  for (unsigned b = 0; b < kWordBytes; ++b) {
    if ((bytes >> b & 1) != 0) check_cell(&splits[split].bytes[b], p);
  }
}

// Which bytes of the word lie in [address, end).
inline uint8_t bytes_in_word(size_t word, uintptr_t address, uintptr_t end) {
  const uintptr_t begin = device_range.begin + word * kWordBytes;
  unsigned bytes = kLive;
  if (address > begin) bytes &= kLive << (address - begin);
  if (end < begin + kWordBytes) bytes &= kLive >> (begin + kWordBytes - end);
  return static_cast<uint8_t>(bytes);
}

bool writes_are_known(const Present& p) {
  if (p.shared) return true;
  const Allocation* allocation = world.memory.find(p.address);
  return allocation != nullptr && allocation->serial > last_unknown;
}

// Padding is copied with what it belongs to, so a read is at fault only where nothing of it (of large ones: of sixteen bytes
// of it) was ever written.
void check_written(size_t first, size_t last, const Present& p) {
  constexpr size_t kSlot = 16 / kWordBytes;
  const uintptr_t end = p.address + p.bytes;
  for (size_t slot = first; slot <= last;) {
    const size_t next = p.bytes <= 16 ? last + 1 : (slot / kSlot + 1) * kSlot;
    bool any = false;
    for (size_t word = slot; word < next && word <= last && !any; ++word) {
      any = (device_range.state[word] >> 4 & bytes_in_word(word, p.address, end)) != 0;
    }
    if (!any && writes_are_known(p)) fail(FaultKind::kUninitialised, p, nullptr);
    slot = next;
  }
}

void check_device_access(Present* p, bool aligned) {
  const Config& config = execution.config();
  const uintptr_t end = p->address + p->bytes;
  const size_t first = device_range.word(p->address);
  const size_t last = device_range.word(end - 1);
  uint8_t* const state = device_range.state;
  ++execution.counters.checked_accesses;
  if (config.check_bounds) {
    if (!device_range.contains(end - 1)) fail(FaultKind::kOutOfBounds, *p, nullptr);
    for (size_t word = first; word <= last; ++word) {
      const uint8_t bytes = bytes_in_word(word, p->address, end);
      if ((state[word] & bytes) != bytes) fail(FaultKind::kOutOfBounds, *p, nullptr);
    }
    if (!p->shared && world.memory.device_of(p->address) != execution.launch().device) {
      fail(FaultKind::kOutOfBounds, *p, nullptr);
    }
    if (aligned && p->address % p->bytes != 0) fail(FaultKind::kMisaligned, *p, nullptr);
  }
  if (p->access != Access::kWrite && config.check_initialised) check_written(first, last, *p);
  if (p->access != Access::kRead) {
    for (size_t word = first; word <= last; ++word) {
      state[word] |= static_cast<uint8_t>(bytes_in_word(word, p->address, end) << 4);
    }
  }
  if (!config.check_races) return;
  const int thread = execution.current();
  p->record = Record{execution.epoch(),
                     static_cast<uint32_t>(thread) | execution.warp_of(thread).syncs << kThreadBits |
                         static_cast<uint32_t>(p->access) << (kThreadBits + kStampBits),
                     code_of(p->pc)};
  p->oldest = p->shared ? p->record.epoch : execution.launch_epoch();
  for (size_t word = first; word <= last; ++word) check_word(word, bytes_in_word(word, p->address, end), *p);
}

// Constants and other variables of the program, wherever it and its libraries are loaded.
struct ImageSearch {
  uintptr_t address;
  uintptr_t begin;
  uintptr_t end;
};

#if defined(__ELF__)
int search_image(dl_phdr_info* info, size_t, void* data) {
  ImageSearch* search = static_cast<ImageSearch*>(data);
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& part = info->dlpi_phdr[i];
    const uintptr_t begin = info->dlpi_addr + part.p_vaddr;
    if (part.p_type != PT_LOAD || search->address - begin >= part.p_memsz) continue;
    search->begin = begin;
    search->end = begin + part.p_memsz;
    return 1;
  }
  return 0;
}
#endif

bool in_program(uintptr_t address) {
#if defined(__ELF__)
  static ImageSearch last{0, 0, 0};
  if (address - last.begin < last.end - last.begin) return true;
  ImageSearch search{address, 0, 0};
  if (dl_iterate_phdr(search_image, &search) == 0) return false;
  last = search;
  return true;
#else
  static_cast<void>(address);
  return true;
#endif
}

// An access to anything but device memory: a thread sees its own stack, constants and pinned memory.
inline void check_foreign_access(uintptr_t address, size_t bytes, Access access, const void* pc, const void* frame) {
  const StackPool& stacks = execution.stacks();
  if (!stacks.contains(reinterpret_cast<uintptr_t>(frame))) return;  // host code
  if (stacks.contains(address, static_cast<size_t>(execution.current()))) return;
  if (!execution.launch().instrumented || !execution.config().check_bounds || bytes == 0) return;
  const Present p{Record{}, access, 0, false, address, bytes, pc};
  if (stacks.contains(address)) fail(FaultKind::kOtherThreadsLocal, p, nullptr);
  if (in_program(address) || world.is_pinned(reinterpret_cast<const void*>(address), bytes)) return;
  fail(FaultKind::kHostMemory, p, nullptr);
}

void report_host_access(uintptr_t address, size_t bytes, const void* pc) {
  const std::lock_guard<std::recursive_mutex> hold(world.mutex);
  report("device memory on the host: access of " + std::to_string(bytes) + " bytes by host code at " + place(pc) +
         "\n  address: " + world.memory.describe(address));
  const int device = std::max(world.memory.device_of(address), 0);
  world.devices[device].broken = cudaErrorIllegalAddress;
}

}  // namespace

void prepare_checks(const Launch& launch) {
  const Config& config = world.config;
  all_checks_on = launch.instrumented && config.check_races && config.check_bounds && config.check_initialised;
  heap_bytes = world.memory.span();
  heap_offset = world.memory.heap_begin(launch.device) - device_range.begin;
  if (!launch.instrumented) {
    last_unknown = world.memory.last_serial();
    return;
  }
  const size_t bytes = device_range.bytes / kWordBytes * sizeof(Cell);
  if (cells == nullptr) {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
      std::fprintf(stderr, "hostlayer: no address space for the race check\n");
      std::abort();
    }
    cells = static_cast<Cell*>(at);
  }
  // What earlier launches did is ordered before this one and may be forgotten.
  if (splits.size() > kMostSplits || execution.epoch() > kLastEpoch) {
    madvise(static_cast<void*>(cells), bytes, MADV_DONTNEED);
    splits.clear();
    execution.restart_epochs();
  }
}

// The same for one or two whole words of a type that is as large, made short for where all is well, which is nearly always:
// whatever it cannot decide, check_access does.
void check_words(uintptr_t address, unsigned words, Access access, const void* pc, const void* frame) {
  const size_t bytes = words * kWordBytes;
  const size_t offset = address - device_range.begin;
  if (offset >= device_range.bytes) {
    check_foreign_access(address, bytes, access, pc, frame);
    return;
  }
  const bool shared = offset < DeviceMemory::kSharedWindowBytes;
  if ((!shared && offset - heap_offset >= heap_bytes) || !all_checks_on || offset % bytes != 0 ||
      !execution.stacks().contains(reinterpret_cast<uintptr_t>(frame))) {
    check_access(address, bytes, access, true, pc, frame);
    return;
  }
  uint8_t* const state = device_range.state + offset / kWordBytes;
  Cell* const first = cells + offset / kWordBytes;
  const uint8_t needed = access == Access::kRead ? kLive | kWritten : kLive;
  for (unsigned i = 0; i < words; ++i) {
    if ((state[i] & needed) != needed || first[i].split != 0) {
      check_access(address, bytes, access, true, pc, frame);
      return;
    }
  }
  ++execution.counters.checked_accesses;
  const int thread = execution.current();
  const uint32_t epoch = execution.epoch();
  Present p{Record{epoch,
                   static_cast<uint32_t>(thread) | execution.warp_of(thread).syncs << kThreadBits |
                       static_cast<uint32_t>(access) << (kThreadBits + kStampBits),
                   code_of(pc)},
            access,
            shared ? epoch : execution.launch_epoch(),
            shared,
            address,
            bytes,
            pc};
  for (unsigned i = 0; i < words; ++i) {
    if (access == Access::kWrite) state[i] = kLive | kWritten;
    check_cell(first + i, p);
  }
}

void check_access(uintptr_t address, size_t bytes, Access access, bool aligned, const void* pc, const void* frame) {
  if (!device_range.contains(address)) {
    check_foreign_access(address, bytes, access, pc, frame);
    return;
  }
  if (!execution.stacks().contains(reinterpret_cast<uintptr_t>(frame))) {
    report_host_access(address, bytes, pc);
    return;
  }
  if (!execution.launch().instrumented || bytes == 0) return;
  Present p{Record{}, access, 0, world.memory.in_shared(address), address, bytes, pc};
  check_device_access(&p, aligned);
}

namespace device {

void check_atomic(const volatile void* address, unsigned bytes, const void* caller) noexcept {
  check_access(reinterpret_cast<uintptr_t>(address), bytes, Access::kAtomic, true, caller, __builtin_frame_address(0));
}

}  // namespace device
}  // namespace hostlayer
