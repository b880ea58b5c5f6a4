#include "fibre.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(PENSTOCK_FIBRE_UCONTEXT)
extern "C" {
/// Store the registers that a function must keep on this stack and its pointer in *from, go over to
/// the stack `to` and take them from there; returns on that stack.
__attribute__((visibility("hidden"))) void cuda_emulation_switch(void** from, void* to);
/// Where a new fibre begins: calls start(self), which cuda_emulation_switch put into registers.
__attribute__((visibility("hidden"))) void cuda_emulation_begin();
}

// The return address at the bottom of a fibre's stack is 0, where debuggers and the unwinder stop.
#if defined(__x86_64__)
asm(R"(
.text
.hidden cuda_emulation_switch
.globl cuda_emulation_switch
.type cuda_emulation_switch, @function
cuda_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_emulation_switch, .-cuda_emulation_switch

.hidden cuda_emulation_begin
.globl cuda_emulation_begin
.type cuda_emulation_begin, @function
cuda_emulation_begin:
  .cfi_startproc
  .cfi_undefined rip
  movq %r12, %rdi
  pushq $0
  jmp *%r13
  .cfi_endproc
.size cuda_emulation_begin, .-cuda_emulation_begin
)");
#else
asm(R"(
.text
.hidden cuda_emulation_switch
.globl cuda_emulation_switch
.type cuda_emulation_switch, %function
cuda_emulation_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size cuda_emulation_switch, .-cuda_emulation_switch

.hidden cuda_emulation_begin
.globl cuda_emulation_begin
.type cuda_emulation_begin, %function
cuda_emulation_begin:
  .cfi_startproc
  .cfi_undefined x30
  mov x0, x19
  mov x30, xzr
  mov x16, x20
  br x16
  .cfi_endproc
.size cuda_emulation_begin, .-cuda_emulation_begin
)");
#endif
#endif

namespace cuda_emulation {
namespace {

constexpr std::size_t kGuardBytes = 4096;
constexpr std::size_t kStackBytes = 256 * 1024;

void before_switch(void** save, const void* bottom, std::size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(save, bottom, size);
#else
  (void)save, (void)bottom, (void)size;
#endif
}

void after_switch(void* saved, const void** bottom, std::size_t* size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(saved, bottom, size);
#else
  (void)saved, (void)bottom, (void)size;
#endif
}

#if defined(PENSTOCK_FIBRE_UCONTEXT)
void go(ucontext_t* from, ucontext_t* to) { swapcontext(from, to); }
#else
void go(void** from, void** to) { cuda_emulation_switch(from, *to); }
#endif

}  // namespace

Fibre::Fibre(void (*entry)(void*), void* user) : entry_(entry), user_(user) {
  memory_ = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory_, kGuardBytes, PROT_NONE);
#if defined(PENSTOCK_FIBRE_UCONTEXT)
  getcontext(&inside_);
  inside_.uc_stack.ss_sp = static_cast<char*>(memory_) + kGuardBytes;
  inside_.uc_stack.ss_size = kStackBytes;
  inside_.uc_link = nullptr;
  // makecontext passes ints, so the address goes in two halves.
  const auto self = reinterpret_cast<std::uintptr_t>(this);
  makecontext(&inside_, reinterpret_cast<void (*)()>(&Fibre::start), 2,
              static_cast<unsigned>(static_cast<std::uint64_t>(self) >> 32),
              static_cast<unsigned>(self));
#else
  // As cuda_emulation_switch leaves a stack: registers, and where to go on.
  auto** top = reinterpret_cast<void**>(static_cast<char*>(memory_) + kGuardBytes + kStackBytes);
  void* const begin = reinterpret_cast<void*>(&cuda_emulation_begin);
  void* const entry_point = reinterpret_cast<void*>(static_cast<void (*)(void*)>(&Fibre::start));
#if defined(__x86_64__)
  void** frame = top - 9;  // r15 r14 r13 r12 rbx rbp, return address; the rest aligns the stack
  frame[2] = entry_point;
  frame[3] = this;
  frame[6] = begin;
#else
  void** frame = top - 20;  // x19 x20 … x29 x30, d8 … d15
  frame[0] = this;
  frame[1] = entry_point;
  frame[11] = begin;
#endif
  inside_ = frame;
#endif
}

Fibre::~Fibre() {
#if defined(__SANITIZE_ADDRESS__)
  // What lies here next must not inherit the marks around this stack's frames.
  __asan_unpoison_memory_region(memory_, kGuardBytes + kStackBytes);
#endif
  munmap(memory_, kGuardBytes + kStackBytes);
}

#if defined(PENSTOCK_FIBRE_UCONTEXT)
void Fibre::start(unsigned high, unsigned low) {
  reinterpret_cast<Fibre*>(
      static_cast<std::uintptr_t>((static_cast<std::uint64_t>(high) << 32) | low))
      ->run();
}
#else
void Fibre::start(void* self) { static_cast<Fibre*>(self)->run(); }
#endif

void Fibre::run() {
  after_switch(nullptr, &outside_bottom_, &outside_size_);
  entry_(user_);
  std::abort();
}

void Fibre::enter() {
  before_switch(&outside_fake_stack_, static_cast<char*>(memory_) + kGuardBytes, kStackBytes);
  go(&outside_, &inside_);
  after_switch(outside_fake_stack_, nullptr, nullptr);
}

void Fibre::leave() {
  before_switch(&inside_fake_stack_, outside_bottom_, outside_size_);
  go(&inside_, &outside_);
  after_switch(inside_fake_stack_, &outside_bottom_, &outside_size_);
}

}  // namespace cuda_emulation
