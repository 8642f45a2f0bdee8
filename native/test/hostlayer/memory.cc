// Reserving, handing out and describing the emulated devices' addresses.
#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "fiber.h"

#if defined(HOSTLAYER_ASAN)
#include <sanitizer/asan_interface.h>
#else
#define __asan_poison_memory_region(at, bytes) static_cast<void>(at)
#define __asan_unpoison_memory_region(at, bytes) static_cast<void>(at)
#endif

namespace hostlayer {

AddressRange device_range;

namespace {

constexpr size_t kAlignment = 256;   // of allocations, as CUDA promises
constexpr size_t kGapBytes = 4096;   // at least, between allocations
constexpr size_t kStepBytes = size_t{1} << 20;  // pages are made accessible by so many
#if defined(HOSTLAYER_ASAN)
constexpr size_t kSpans[] = {size_t{2} << 30, size_t{256} << 20};  // of a device; the sanitizer's poison is memory too
#else
constexpr size_t kSpans[] = {size_t{16} << 30, size_t{2} << 30, size_t{256} << 20};  // of a device, the first that is given
#endif
constexpr size_t kFreedKept = 4096;             // freed blocks remembered for reports
constexpr size_t kDropBytes = size_t{1} << 18;  // larger freed blocks are given back to the system

size_t round_up(size_t bytes, size_t multiple) { return (bytes + multiple - 1) / multiple * multiple; }

void* map_reserved(size_t bytes, int protection) {
  void* at = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return at == MAP_FAILED ? nullptr : at;
}

// Whether the system would map so much, all in all.
bool has_room(size_t bytes) {
  void* at = map_reserved(bytes, PROT_NONE);
  if (at != nullptr) munmap(at, bytes);
  return at != nullptr;
}

void* as_pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }

}  // namespace

void fill_with_poison(void* at, size_t bytes, uint64_t poison) {
  unsigned char* p = static_cast<unsigned char*>(at);
  size_t i = 0;
  for (; i + 8 <= bytes; i += 8) std::memcpy(p + i, &poison, 8);
  std::memcpy(p + i, &poison, bytes - i);
}

bool DeviceMemory::reserve() {
  if (device_range.bytes != 0) return true;
  for (const size_t span : kSpans) {
    const size_t bytes = kSharedWindowBytes + kMaxDevices * span;
    if (!has_room(bytes / kWordBytes * (kWordBytes + 1 + kCheckBytesPerWord))) continue;
    void* space = map_reserved(bytes, PROT_NONE);
    void* state = map_reserved(bytes / kWordBytes, PROT_READ | PROT_WRITE);
    if (space == nullptr || state == nullptr) return false;
    if (mprotect(space, kSharedWindowBytes, PROT_READ | PROT_WRITE) != 0) return false;
    __asan_poison_memory_region(space, kSharedWindowBytes);
    device_range.begin = reinterpret_cast<uintptr_t>(space);
    device_range.state = static_cast<uint8_t*>(state);
    device_range.bytes = bytes;
    span_ = span;
    for (int d = 0; d < kMaxDevices; ++d) cursor_[d] = accessible_[d] = heap_begin(d);
    return true;
  }
  return false;
}

bool DeviceMemory::make_accessible(int device, uintptr_t end) {
  if (end <= accessible_[device]) return true;
  const uintptr_t limit = heap_begin(device) + span_;
  const uintptr_t target = std::min(limit, heap_begin(device) + round_up(end - heap_begin(device), kStepBytes));
  const size_t bytes = target - accessible_[device];
  if (mprotect(as_pointer(accessible_[device]), bytes, PROT_READ | PROT_WRITE) != 0) return false;
  __asan_poison_memory_region(as_pointer(accessible_[device]), bytes);
  accessible_[device] = target;
  return true;
}

// The next gap behind the last allocation that holds `bytes` and the spaces around them; 0 if there is none.
uintptr_t DeviceMemory::find_gap(int device, size_t bytes) const {
  const uintptr_t first = heap_begin(device);
  const uintptr_t last = first + span_;
  for (const uintptr_t from : {cursor_[device], first}) {
    uintptr_t at = from;
    for (auto next = live_.lower_bound(from);; ++next) {
      const bool mine = next != live_.end() && next->first < last;
      const uintptr_t end = mine ? next->first : last;
      const uintptr_t begin = round_up(at + kGapBytes, kAlignment);
      if (begin < end && end - begin >= bytes + kGapBytes) return begin;
      if (!mine) break;
      at = next->second.begin + next->second.bytes;
    }
  }
  return 0;
}

void DeviceMemory::set_live(uintptr_t begin, size_t bytes, bool live) {
  uint8_t* state = device_range.state + device_range.word(begin);
  const size_t words = bytes / kWordBytes;
  std::memset(state, live ? kLive : 0, words);
  const size_t rest = bytes % kWordBytes;
  if (rest != 0) state[words] = live ? static_cast<uint8_t>((1u << rest) - 1) : 0;
}

void* DeviceMemory::allocate(int device, size_t bytes, size_t limit, uint64_t poison, const void* caller) {
  const size_t charged = round_up(bytes, kAlignment);
  if (bytes > limit || charged > limit - std::min(limit, used_[device])) return nullptr;
  const uintptr_t begin = find_gap(device, charged);
  if (begin == 0 || !make_accessible(device, begin + charged + kGapBytes)) return nullptr;
  auto after = freed_.lower_bound(begin);
  if (after != freed_.begin()) --after;
  while (after != freed_.end() && after->first < begin + charged) {
    const bool covered = after->second.begin + after->second.bytes > begin;
    after = covered ? freed_.erase(after) : std::next(after);
  }
  __asan_unpoison_memory_region(as_pointer(begin), bytes);
  fill_with_poison(as_pointer(begin), bytes, poison);
  set_live(begin, bytes, true);
  live_[begin] = Allocation{begin, bytes, device, ++serial_, caller};
  used_[device] += charged;
  cursor_[device] = begin + charged;
  return as_pointer(begin);
}

bool DeviceMemory::release(void* pointer) {
  const auto found = live_.find(reinterpret_cast<uintptr_t>(pointer));
  if (found == live_.end()) return false;
  const Allocation& a = found->second;
  set_live(a.begin, a.bytes, false);
  if (a.bytes >= kDropBytes) {
    const size_t page = 65536;  // a multiple of every page size
    const uintptr_t from = round_up(a.begin, page);
    const uintptr_t to = (a.begin + a.bytes) / page * page;
    if (from < to) madvise(as_pointer(from), to - from, MADV_DONTNEED);
  } else {
    fill_with_poison(pointer, a.bytes, 0xfdfdfdfdfdfdfdfdu);
  }
  __asan_poison_memory_region(pointer, round_up(a.bytes, 8));
  used_[a.device] -= round_up(a.bytes, kAlignment);
  if (freed_.size() >= kFreedKept) freed_.erase(freed_.begin());
  freed_[a.begin] = a;
  live_.erase(found);
  return true;
}

void DeviceMemory::release_all(int device) {
  for (auto a = live_.begin(); a != live_.end();) {
    const Allocation allocation = (a++)->second;
    if (allocation.device == device) release(as_pointer(allocation.begin));
  }
}

const Allocation* DeviceMemory::find(uintptr_t address) const {
  auto after = live_.upper_bound(address);
  if (after == live_.begin()) return nullptr;
  const Allocation& a = (--after)->second;
  return address - a.begin < a.bytes ? &a : nullptr;
}

const Allocation* DeviceMemory::find(const void* address, size_t bytes) const {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
  const Allocation* a = find(begin);
  return a != nullptr && bytes <= a->bytes - (begin - a->begin) ? a : nullptr;
}

int DeviceMemory::device_of(uintptr_t address) const {
  const size_t offset = address - device_range.begin;
  return offset < kSharedWindowBytes ? -1 : static_cast<int>((offset - kSharedWindowBytes) / span_);
}

unsigned char* DeviceMemory::open_shared(size_t bytes, uint64_t poison) {
  unsigned char* const at = static_cast<unsigned char*>(as_pointer(shared_begin()));
  if (bytes != shared_bytes_) {
    set_live(shared_begin(), shared_bytes_, false);
    __asan_poison_memory_region(at, round_up(shared_bytes_, 8));
    __asan_unpoison_memory_region(at, bytes);
    shared_bytes_ = bytes;
  }
  set_live(shared_begin(), bytes, true);
  fill_with_poison(at, bytes, poison);
  return at;
}

void DeviceMemory::mark_written(uintptr_t address, size_t bytes) {
  uint8_t* state = device_range.state;
  while (bytes != 0 && address % kWordBytes != 0) {
    state[device_range.word(address)] |= static_cast<uint8_t>(0x10u << address % kWordBytes);
    ++address;
    --bytes;
  }
  const size_t words = bytes / kWordBytes;
  if (words != 0) std::memset(state + device_range.word(address), kLive | kWritten, words);
  address += words * kWordBytes;
  for (size_t i = 0; i < bytes % kWordBytes; ++i) {
    state[device_range.word(address + i)] |= static_cast<uint8_t>(0x10u << (address + i) % kWordBytes);
  }
}

void DeviceMemory::copy_written(uintptr_t target, uintptr_t source, size_t bytes) {
  if (target % kWordBytes != 0 || source % kWordBytes != 0) {
    mark_written(target, bytes);  // rather miss a finding than make one up
    return;
  }
  const size_t words = bytes / kWordBytes;
  uint8_t* to = device_range.state + device_range.word(target);
  std::memmove(to, device_range.state + device_range.word(source), words);
  for (size_t i = 0; i < words; ++i) to[i] |= kLive;
  if (bytes % kWordBytes != 0) mark_written(target + words * kWordBytes, bytes % kWordBytes);
}

std::string DeviceMemory::describe(uintptr_t address) const {
  if (in_shared(address)) {
    const int64_t offset = static_cast<int64_t>(address) - static_cast<int64_t>(shared_begin());
    return "byte " + std::to_string(offset) + " of the block's " + std::to_string(shared_bytes_) + " bytes of shared memory";
  }
  const auto text = [](const Allocation& a, const char* kind, uintptr_t at) {
    const int64_t offset = static_cast<int64_t>(at) - static_cast<int64_t>(a.begin);
    return "byte " + std::to_string(offset) + " of " + kind + " allocation #" + std::to_string(a.serial) + " of " +
           std::to_string(a.bytes) + " bytes on device " + std::to_string(a.device);
  };
  if (const Allocation* a = find(address)) return text(*a, "the", address);
  const auto freed = freed_.upper_bound(address);
  if (freed != freed_.begin() && address - std::prev(freed)->second.begin < std::prev(freed)->second.bytes) {
    return text(std::prev(freed)->second, "the freed", address);
  }
  // The nearest that is live.
  const auto after = live_.upper_bound(address);
  const Allocation* below = after == live_.begin() ? nullptr : &std::prev(after)->second;
  const Allocation* above = after == live_.end() ? nullptr : &after->second;
  const Allocation* nearest = below != nullptr ? below : above;
  if (below != nullptr && above != nullptr && above->begin - address < address - (below->begin + below->bytes)) nearest = above;
  return nearest == nullptr ? "device memory that was never allocated" : text(*nearest, "the", address);
}

}  // namespace hostlayer
