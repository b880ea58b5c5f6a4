#include "fibre.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
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

}  // namespace

Fibre::Fibre(void (*entry)(void*), void* user) : entry_(entry), user_(user) {
  memory_ = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory_, kGuardBytes, PROT_NONE);
  getcontext(&inside_);
  inside_.uc_stack.ss_sp = static_cast<char*>(memory_) + kGuardBytes;
  inside_.uc_stack.ss_size = kStackBytes;
  inside_.uc_link = nullptr;
  // makecontext passes ints, so the address goes in two halves.
  const auto self = reinterpret_cast<std::uintptr_t>(this);
  makecontext(&inside_, reinterpret_cast<void (*)()>(&Fibre::start), 2,
              static_cast<unsigned>(static_cast<std::uint64_t>(self) >> 32),
              static_cast<unsigned>(self));
}

Fibre::~Fibre() { munmap(memory_, kGuardBytes + kStackBytes); }

void Fibre::start(unsigned high, unsigned low) {
  auto* self = reinterpret_cast<Fibre*>(
      static_cast<std::uintptr_t>((static_cast<std::uint64_t>(high) << 32) | low));
  after_switch(nullptr, &self->outside_bottom_, &self->outside_size_);
  self->entry_(self->user_);
  std::abort();
}

void Fibre::enter() {
  before_switch(&outside_fake_stack_, inside_.uc_stack.ss_sp, kStackBytes);
  swapcontext(&outside_, &inside_);
  after_switch(outside_fake_stack_, nullptr, nullptr);
}

void Fibre::leave() {
  before_switch(&inside_fake_stack_, outside_bottom_, outside_size_);
  swapcontext(&inside_, &outside_);
  after_switch(inside_fake_stack_, &outside_bottom_, &outside_size_);
}

}  // namespace cuda_emulation
