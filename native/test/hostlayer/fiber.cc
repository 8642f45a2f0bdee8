// The switch itself, and the memory of the stacks.
#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#if defined(HOSTLAYER_ASAN)
#include <sanitizer/asan_interface.h>
#endif

#if !defined(HOSTLAYER_UCONTEXT)
#if defined(__APPLE__)
#define HOSTLAYER_SYMBOL "_hostlayer_switch"
#define HOSTLAYER_HIDE ".private_extern " HOSTLAYER_SYMBOL "\n"
#define HOSTLAYER_END ""
#else
#define HOSTLAYER_SYMBOL "hostlayer_switch"
#define HOSTLAYER_HIDE ".hidden " HOSTLAYER_SYMBOL "\n.type " HOSTLAYER_SYMBOL ", %function\n"
#define HOSTLAYER_END ".size " HOSTLAYER_SYMBOL ", .-" HOSTLAYER_SYMBOL "\n"
#endif

// Saves what a called function must keep and its own stack pointer, and takes up those of the other side. It goes on by a
// plain return: the fibers of a block mostly wait at the same place, so what the return stack of the processor foretells is
// right although it belongs to another fiber; an indirect jump would leave that stack out of step and every later return
// mispredicted. Control words of floating point are the same in all fibers.
#if defined(__x86_64__)
__asm__(
    ".text\n.p2align 4\n.globl " HOSTLAYER_SYMBOL "\n" HOSTLAYER_HIDE HOSTLAYER_SYMBOL ":\n"
    "  pushq %rbp\n"
    "  pushq %rbx\n"
    "  pushq %r12\n"
    "  pushq %r13\n"
    "  pushq %r14\n"
    "  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n"
    "  popq %r14\n"
    "  popq %r13\n"
    "  popq %r12\n"
    "  popq %rbx\n"
    "  popq %rbp\n"
    "  ret\n" HOSTLAYER_END);
#elif defined(__aarch64__)
__asm__(
    ".text\n.p2align 4\n.globl " HOSTLAYER_SYMBOL "\n" HOSTLAYER_HIDE HOSTLAYER_SYMBOL ":\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n"
    "  stp x21, x22, [sp, #16]\n"
    "  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n"
    "  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n"
    "  stp d10, d11, [sp, #112]\n"
    "  stp d12, d13, [sp, #128]\n"
    "  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n"
    "  str x9, [x0]\n"
    "  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n"
    "  ldp x21, x22, [sp, #16]\n"
    "  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n"
    "  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n"
    "  ldp d10, d11, [sp, #112]\n"
    "  ldp d12, d13, [sp, #128]\n"
    "  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  ret\n" HOSTLAYER_END);
#else
#error "no fiber switch for this architecture: compile with HOSTLAYER_UCONTEXT"
#endif
#endif

namespace hostlayer {
namespace {

size_t page_bytes() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

bool StackPool::reserve(size_t count, size_t bytes) {
  const size_t page = page_bytes();
  const size_t pages = ((bytes + page - 1) / page + 1) | 1;  // with the guard, and odd
  const size_t slot = pages * page;
  if (slot_ >= slot && bytes_ >= count * slot_) return true;
  if (bytes_ != 0) munmap(reinterpret_cast<void*>(begin_), bytes_);
  bytes_ = 0;
  void* at = mmap(nullptr, count * slot, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return false;
  begin_ = reinterpret_cast<uintptr_t>(at);
  bytes_ = count * slot;
  slot_ = slot;
  for (size_t i = 0; i < count; ++i) {
    // Overrunning a stack must not quietly write into its neighbour.
    if (mprotect(reinterpret_cast<void*>(begin_ + i * slot_), page_bytes(), PROT_NONE) != 0) return false;
  }
  return true;
}

StackSpan StackPool::stack(size_t index) const {
  return {reinterpret_cast<unsigned char*>(begin_ + index * slot_ + page_bytes()), slot_ - page_bytes()};
}

void StackPool::forget_frames() const {
#if defined(HOSTLAYER_ASAN)
  for (size_t i = 0; i * slot_ < bytes_; ++i) __asan_unpoison_memory_region(stack(i).bottom, stack(i).bytes);
#endif
}

void prepare(Context* context, StackSpan stack, size_t colour, FiberEntry entry) {
#if defined(HOSTLAYER_ASAN)
  context->fake_stack = nullptr;
  context->stack_bottom = stack.bottom;
  context->stack_bytes = stack.bytes;
#endif
#if defined(HOSTLAYER_UCONTEXT)
  static_cast<void>(colour);
  getcontext(&context->machine);
  context->machine.uc_stack.ss_sp = stack.bottom;
  context->machine.uc_stack.ss_size = stack.bytes;
  context->machine.uc_link = nullptr;
  makecontext(&context->machine, entry, 0);
#else
  uintptr_t top = reinterpret_cast<uintptr_t>(stack.bottom) + stack.bytes - colour;
#if defined(__x86_64__)
  // Six registers, the place to go to, and a return address of zero, which ends a debugger's walk.
  void** frame = reinterpret_cast<void**>(top) - 8;
  std::memset(frame, 0, 8 * sizeof(void*));
  frame[6] = reinterpret_cast<void*>(entry);
#else
  void** frame = reinterpret_cast<void**>(top) - 20;
  std::memset(frame, 0, 20 * sizeof(void*));
  frame[11] = reinterpret_cast<void*>(entry);  // x30
#endif
  context->stack_pointer = frame;
#endif
}

}  // namespace hostlayer
