// The functions that a compiler calls under -fsanitize=thread. Kernels are compiled with it and linked without its runtime;
// these stand in its place and know CUDA's rules instead of those of operating system threads.
#include <atomic>
#include <cstdint>
#include <cstring>

#include "race.h"

using hostlayer::Access;

#define HOSTLAYER_CHECK(address, bytes, access, aligned)                                                              \
  hostlayer::check_access(reinterpret_cast<uintptr_t>(address), bytes, access, aligned, __builtin_return_address(0), \
                          __builtin_frame_address(0))

#define HOSTLAYER_CHECK_WORDS(address, bytes, access)                                                              \
  if (bytes == 4 || bytes == 8) {                                                                                  \
    hostlayer::check_words(reinterpret_cast<uintptr_t>(address), bytes / 4, access, __builtin_return_address(0),   \
                           __builtin_frame_address(0));                                                            \
  } else {                                                                                                         \
    HOSTLAYER_CHECK(address, bytes, access, bytes <= 8);                                                           \
  }

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_ignore_thread_begin() {}
void __tsan_ignore_thread_end() {}

// Sixteen bytes are mostly structs that the compiler copies at once, and need no more alignment than their members.
#define HOSTLAYER_ACCESSES(bytes)                                                                                     \
  void __tsan_read##bytes(void* at) { HOSTLAYER_CHECK_WORDS(at, bytes, Access::kRead); }                              \
  void __tsan_write##bytes(void* at) { HOSTLAYER_CHECK_WORDS(at, bytes, Access::kWrite); }                            \
  void __tsan_volatile_read##bytes(void* at) { HOSTLAYER_CHECK(at, bytes, Access::kRead, bytes <= 8); }               \
  void __tsan_volatile_write##bytes(void* at) { HOSTLAYER_CHECK(at, bytes, Access::kWrite, bytes <= 8); }             \
  void __tsan_unaligned_read##bytes(void* at) { HOSTLAYER_CHECK(at, bytes, Access::kRead, false); }                   \
  void __tsan_unaligned_write##bytes(void* at) { HOSTLAYER_CHECK(at, bytes, Access::kWrite, false); }                 \
  void __tsan_unaligned_volatile_read##bytes(void* at) { HOSTLAYER_CHECK(at, bytes, Access::kRead, false); }          \
  void __tsan_unaligned_volatile_write##bytes(void* at) { HOSTLAYER_CHECK(at, bytes, Access::kWrite, false); }        \
  void __tsan_read_write##bytes(void* at) {                                                                           \
    HOSTLAYER_CHECK(at, bytes, Access::kRead, bytes <= 8);                                                            \
    HOSTLAYER_CHECK(at, bytes, Access::kWrite, bytes <= 8);                                                           \
  }                                                                                                                   \
  void __tsan_unaligned_read_write##bytes(void* at) {                                                                 \
    HOSTLAYER_CHECK(at, bytes, Access::kRead, false);                                                                 \
    HOSTLAYER_CHECK(at, bytes, Access::kWrite, false);                                                                \
  }
HOSTLAYER_ACCESSES(1)
HOSTLAYER_ACCESSES(2)
HOSTLAYER_ACCESSES(4)
HOSTLAYER_ACCESSES(8)
HOSTLAYER_ACCESSES(16)
#undef HOSTLAYER_ACCESSES

void __tsan_read_range(void* at, long bytes) { HOSTLAYER_CHECK(at, static_cast<size_t>(bytes), Access::kRead, false); }
void __tsan_write_range(void* at, long bytes) { HOSTLAYER_CHECK(at, static_cast<size_t>(bytes), Access::kWrite, false); }

void* __tsan_memcpy(void* target, const void* source, size_t bytes) {
  HOSTLAYER_CHECK(source, bytes, Access::kRead, false);
  HOSTLAYER_CHECK(target, bytes, Access::kWrite, false);
  return std::memcpy(target, source, bytes);
}
void* __tsan_memmove(void* target, const void* source, size_t bytes) {
  HOSTLAYER_CHECK(source, bytes, Access::kRead, false);
  HOSTLAYER_CHECK(target, bytes, Access::kWrite, false);
  return std::memmove(target, source, bytes);
}
void* __tsan_memset(void* target, int value, size_t bytes) {
  HOSTLAYER_CHECK(target, bytes, Access::kWrite, false);
  return std::memset(target, value, bytes);
}

// Atomic operations of the C++ language. Host code in the same file may share them with other threads, so they are atomic.
#define HOSTLAYER_MODIFY(bits, T, name, builtin)                       \
  T __tsan_atomic##bits##_##name(volatile T* at, T value, int) {       \
    HOSTLAYER_CHECK(at, sizeof(T), Access::kAtomic, true);             \
    return builtin(at, value, __ATOMIC_SEQ_CST);                       \
  }
#define HOSTLAYER_EXCHANGE(bits, T, strength)                                                                        \
  int __tsan_atomic##bits##_compare_exchange_##strength(volatile T* at, T* expected, T value, int, int) {            \
    HOSTLAYER_CHECK(at, sizeof(T), Access::kAtomic, true);                                                           \
    return __atomic_compare_exchange_n(at, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);              \
  }
#define HOSTLAYER_ATOMICS(bits, T)                                            \
  T __tsan_atomic##bits##_load(const volatile T* at, int) {                   \
    HOSTLAYER_CHECK(at, sizeof(T), Access::kAtomic, true);                    \
    return __atomic_load_n(at, __ATOMIC_SEQ_CST);                             \
  }                                                                           \
  void __tsan_atomic##bits##_store(volatile T* at, T value, int) {            \
    HOSTLAYER_CHECK(at, sizeof(T), Access::kAtomic, true);                    \
    __atomic_store_n(at, value, __ATOMIC_SEQ_CST);                            \
  }                                                                           \
  HOSTLAYER_MODIFY(bits, T, exchange, __atomic_exchange_n)                    \
  HOSTLAYER_MODIFY(bits, T, fetch_add, __atomic_fetch_add)                    \
  HOSTLAYER_MODIFY(bits, T, fetch_sub, __atomic_fetch_sub)                    \
  HOSTLAYER_MODIFY(bits, T, fetch_and, __atomic_fetch_and)                    \
  HOSTLAYER_MODIFY(bits, T, fetch_or, __atomic_fetch_or)                      \
  HOSTLAYER_MODIFY(bits, T, fetch_xor, __atomic_fetch_xor)                    \
  HOSTLAYER_MODIFY(bits, T, fetch_nand, __atomic_fetch_nand)                  \
  HOSTLAYER_EXCHANGE(bits, T, strong)                                         \
  HOSTLAYER_EXCHANGE(bits, T, weak)                                           \
  T __tsan_atomic##bits##_compare_exchange_val(volatile T* at, T expected, T value, int, int) {            \
    HOSTLAYER_CHECK(at, sizeof(T), Access::kAtomic, true);                                                 \
    __atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);          \
    return expected;                                                                                       \
  }
HOSTLAYER_ATOMICS(8, uint8_t)
HOSTLAYER_ATOMICS(16, uint16_t)
HOSTLAYER_ATOMICS(32, uint32_t)
HOSTLAYER_ATOMICS(64, uint64_t)
#undef HOSTLAYER_ATOMICS
#undef HOSTLAYER_EXCHANGE
#undef HOSTLAYER_MODIFY

void __tsan_atomic_thread_fence(int) { std::atomic_thread_fence(std::memory_order_seq_cst); }
void __tsan_atomic_signal_fence(int) { std::atomic_signal_fence(std::memory_order_seq_cst); }

}  // extern "C"
