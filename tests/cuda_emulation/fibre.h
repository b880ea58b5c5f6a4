// Fibres: call stacks that one operating-system thread switches between by hand.
#pragma once

#include <ucontext.h>

#include <cstddef>

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
  static void start(unsigned high, unsigned low);

  void (*entry_)(void*);
  void* user_;
  void* memory_ = nullptr;  // a guard page, then the stack
  ucontext_t inside_ = {};
  ucontext_t outside_ = {};
  // What the address sanitizer needs to follow the switches.
  void* inside_fake_stack_ = nullptr;
  void* outside_fake_stack_ = nullptr;
  const void* outside_bottom_ = nullptr;
  std::size_t outside_size_ = 0;
};

}  // namespace cuda_emulation
