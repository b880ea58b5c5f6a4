// Fibres: call stacks that one operating-system thread switches between by hand.
#pragma once

#include <cstddef>

// Switching by ucontext costs two system calls, so where the calling convention is known a few
// instructions do it. PENSTOCK_FIBRE_UCONTEXT asks for ucontext all the same.
#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(PENSTOCK_FIBRE_UCONTEXT)
#define PENSTOCK_FIBRE_UCONTEXT
#endif
#if defined(PENSTOCK_FIBRE_UCONTEXT)
#include <ucontext.h>
#endif

namespace cuda_emulation {

/// A call stack that runs entry(user) and can be left and entered again. entry never returns: when
/// it has nothing to do it leaves.
class Fibre {
 public:
  Fibre(void (*entry)(void*), void* user);
  ~Fibre();
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;

  /// Called outside: run the fibre until it leaves.
  void enter();
  /// Called inside: go back to where enter() was called.
  void leave();

 private:
  [[noreturn]] void run();

  void (*entry_)(void*);
  void* user_;
  void* memory_ = nullptr;  // a guard page, then the stack
#if defined(PENSTOCK_FIBRE_UCONTEXT)
  static void start(unsigned high, unsigned low);
  ucontext_t inside_ = {};
  ucontext_t outside_ = {};
#else
  static void start(void* self);
  void* inside_ = nullptr;  // stack pointers; what must survive a switch lies on the stacks
  void* outside_ = nullptr;
#endif
  // What the address sanitizer needs to follow the switches.
  void* inside_fake_stack_ = nullptr;
  void* outside_fake_stack_ = nullptr;
  const void* outside_bottom_ = nullptr;
  std::size_t outside_size_ = 0;
};

}  // namespace cuda_emulation
