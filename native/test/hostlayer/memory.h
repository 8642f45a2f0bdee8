// The address space of the emulated devices: one reserved range that holds a window for the running block's shared memory
// and a heap for each device. One byte of state for every four bytes says which of them are allocated and which were written.
// Freed addresses come back only after the whole heap has been gone through, and between allocations there are gaps, so that
// a stray access meets nothing live.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "include/hostlayer_types.h"

namespace hostlayer {

constexpr int kMaxDevices = 8;
constexpr size_t kWordBytes = 4;  // one state byte each
constexpr size_t kCheckBytesPerWord = 64;  // that the race check maps beside
constexpr uint8_t kLive = 0x0f;   // a bit for each byte of the word
constexpr uint8_t kWritten = 0xf0;

struct Allocation {
  uintptr_t begin = 0;
  size_t bytes = 0;
  int device = 0;
  int64_t serial = 0;            // counted from 1
  const void* caller = nullptr;  // the code that asked for it
};

// What every access check needs, without a call.
struct AddressRange {
  uintptr_t begin = 0;
  size_t bytes = 0;
  uint8_t* state = nullptr;  // [bytes / kWordBytes]
  bool contains(uintptr_t address) const { return address - begin < bytes; }
  size_t word(uintptr_t address) const { return (address - begin) / kWordBytes; }
};
extern AddressRange device_range;

class DeviceMemory {
 public:
  static constexpr size_t kSharedWindowBytes = size_t{1} << 20;

  // False where the operating system does not give the address space.
  bool reserve();

  // Filled with poison; null when `limit` bytes of the device would be exceeded. At least 256-byte aligned.
  void* allocate(int device, size_t bytes, size_t limit, uint64_t poison, const void* caller);
  bool release(void* pointer);
  void release_all(int device);

  // The allocation that holds the address, else null.
  const Allocation* find(uintptr_t address) const;
  // Whether [address, address + bytes) lies in one allocation.
  const Allocation* find(const void* address, size_t bytes) const;
  int64_t count() const { return static_cast<int64_t>(live_.size()); }
  int64_t last_serial() const { return serial_; }
  size_t used(int device) const { return used_[device]; }
  uintptr_t heap_begin(int device) const { return device_range.begin + kSharedWindowBytes + device * span_; }
  size_t span() const { return span_; }  // addresses of each device
  // As if the addresses up to this one had been handed out last.
  void skip_to(int device, size_t offset) { cursor_[device] = heap_begin(device) + offset; }
  int device_of(uintptr_t address) const;  // of any address in the range; -1 in the shared window

  // The memory of a block that starts: exactly `bytes`, poisoned, nothing written.
  unsigned char* open_shared(size_t bytes, uint64_t poison);
  bool in_shared(uintptr_t address) const { return address - device_range.begin < kSharedWindowBytes; }
  uintptr_t shared_begin() const { return device_range.begin + kSharedOffset; }
  size_t shared_bytes() const { return shared_bytes_; }

  void mark_written(uintptr_t address, size_t bytes);
  // The bytes at `target` are as written as those at `source`.
  void copy_written(uintptr_t target, uintptr_t source, size_t bytes);

  std::string describe(uintptr_t address) const;

 private:
  static constexpr size_t kSharedOffset = size_t{64} << 10;

  bool make_accessible(int device, uintptr_t end);
  uintptr_t find_gap(int device, size_t bytes) const;
  void set_live(uintptr_t begin, size_t bytes, bool live);

  size_t span_ = 0;
  std::map<uintptr_t, Allocation> live_;     // by address
  std::map<uintptr_t, Allocation> freed_;    // for reports; what was allocated again over them is taken out
  size_t used_[kMaxDevices] = {};
  uintptr_t cursor_[kMaxDevices] = {};       // where the last allocation ended
  uintptr_t accessible_[kMaxDevices] = {};   // end of the pages that may be touched
  size_t shared_bytes_ = 0;
  int64_t serial_ = 0;
};

void fill_with_poison(void* at, size_t bytes, uint64_t poison);

}  // namespace hostlayer
