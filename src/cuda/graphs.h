// Work of many small launches as a CUDA graph, so that a launch costs the device about a
// microsecond and the host nothing.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

#include "core/backend.h"

namespace penstock::cuda {

/// What a piece of work depends on, all of it: every number and pointer that its launches get.
class GraphKey {
 public:
  template <class T>
  GraphKey& add(const T& value) {
    static_assert(std::is_scalar<T>::value, "padding between members would make keys differ");
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

/// Create what graphs of a device need. Not under stream capture.
void prepare_graphs(int device);

/// Put enqueue(user, ctx), which makes about `launches` launches, on the context's stream. Work
/// that comes a second time with the same key is recorded as a graph, and from then on launched as
/// one.
void run_as_graph(const Context& ctx, const GraphKey& key, std::int64_t launches,
                  void (*enqueue)(void* user, const Context&), void* user);

template <class F>
void run_as_graph(const Context& ctx, const GraphKey& key, std::int64_t launches, F&& enqueue) {
  run_as_graph(
      ctx, key, launches,
      [](void* user, const Context& c) { (*static_cast<std::remove_reference_t<F>*>(user))(c); },
      const_cast<void*>(static_cast<const void*>(&enqueue)));
}

}  // namespace penstock::cuda
