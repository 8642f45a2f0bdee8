// Fibers: stacks of their own on one operating system thread, switched by a few instructions of assembly (x86-64, aarch64)
// or by ucontext elsewhere. The stacks are mapped once, each above a guard page, and used again by every block. They are
// an odd number of pages apart, so that their pages spread over all sets of the address cache.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(HOSTLAYER_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define HOSTLAYER_UCONTEXT 1
#endif
#if defined(HOSTLAYER_UCONTEXT)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define HOSTLAYER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HOSTLAYER_ASAN 1
#endif
#endif

namespace hostlayer {

// One flow of control: a fiber that is not running, or the caller of the fibers.
struct Context {
  void* stack_pointer = nullptr;
#if defined(HOSTLAYER_UCONTEXT)
  ucontext_t machine;
#endif
#if defined(HOSTLAYER_ASAN)
  void* fake_stack = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_bytes = 0;
#endif
};

using FiberEntry = void (*)();  // must not return

// The lowest address and the size of one fiber's stack.
struct StackSpan {
  unsigned char* bottom = nullptr;
  size_t bytes = 0;
};

class StackPool {
 public:
  // Room for `count` stacks of at least `bytes`. What was there before is kept where it is enough.
  bool reserve(size_t count, size_t bytes);
  StackSpan stack(size_t index) const;
  // Whether the address lies in any of the stacks.
  bool contains(uintptr_t address) const { return address - begin_ < bytes_; }
  bool contains(uintptr_t address, size_t index) const { return address - (begin_ + index * slot_) < slot_; }
  // Undoes what a sanitizer remembers of frames that were left without returning.
  void forget_frames() const;

 private:
  uintptr_t begin_ = 0;
  size_t bytes_ = 0;  // of all slots
  size_t slot_ = 0;   // of one: the guard page and the stack
};

// Makes `context` start `entry` on `stack`, `colour` bytes (a multiple of 16) below its top, when it is switched to.
void prepare(Context* context, StackSpan stack, size_t colour, FiberEntry entry);

#if !defined(HOSTLAYER_UCONTEXT)
extern "C" void hostlayer_switch(void** save, void* load) noexcept;
#endif

// Leaves `from` and continues `to`. With `last`, `from` is never continued.
inline void switch_context(Context* from, Context* to, bool last = false);

}  // namespace hostlayer

#if defined(HOSTLAYER_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif

namespace hostlayer {

inline void switch_context([[maybe_unused]] Context* from, Context* to, [[maybe_unused]] bool last) {
#if defined(HOSTLAYER_ASAN)
  __sanitizer_start_switch_fiber(last ? nullptr : &from->fake_stack, to->stack_bottom, to->stack_bytes);
#endif
#if defined(HOSTLAYER_UCONTEXT)
  swapcontext(&from->machine, &to->machine);
#else
  hostlayer_switch(&from->stack_pointer, to->stack_pointer);
#endif
#if defined(HOSTLAYER_ASAN)
  __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
}

}  // namespace hostlayer
