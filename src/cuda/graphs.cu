#include "cuda/graphs.h"

#include <cstdlib>
#include <functional>
#include <iterator>
#include <list>
#include <map>
#include <mutex>

#include "cuda/launch.h"

namespace penstock::cuda {
namespace {

// Recording and instantiating costs more than a few launches save, and a graph takes memory for
// each node.
constexpr std::int64_t kFewestLaunches = 8;
constexpr std::int64_t kMostLaunches = std::int64_t{1} << 14;
constexpr std::int64_t kMostLaunchesKept = std::int64_t{1} << 16;
// Keys that are remembered without a graph cost next to nothing.
constexpr std::size_t kMostKeys = 256;

struct Entry {
  std::size_t hash = 0;
  std::string key;
  cudaGraphExec_t graph = nullptr;
  std::int64_t launches = 0;
  bool refused = false;  // could not be recorded
};

/// A device's graphs, the one used last in front.
struct Graphs {
  std::mutex mutex;
  // Records; nothing ever runs on it. Non-blocking, so that recording is no business of the
  // default stream's.
  cudaStream_t recorder = nullptr;
  std::list<Entry> entries;
  std::int64_t launches = 0;  // of all entries' graphs
};

// They live as long as the process: see handle_of in gemm.cu.
Graphs& graphs_of(int device) {
  static std::mutex mutex;
  static auto* graphs = new std::map<int, Graphs>();
  const std::lock_guard<std::mutex> lock(mutex);
  return (*graphs)[device];
}

bool wanted(std::int64_t launches) {
  static const bool off = [] {
    const char* text = std::getenv("PENSTOCK_CUDA_GRAPHS");
    return text != nullptr && text[0] == '0';
  }();
  return !off && launches >= kFewestLaunches && launches <= kMostLaunches;
}

bool is_recorded(const Context& ctx) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream_of(ctx), &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

void forget(Graphs* graphs, std::list<Entry>::iterator entry) {
  if (entry->graph != nullptr) {
    // What of it still runs goes on: the runtime frees it afterwards.
    cudaGraphExecDestroy(entry->graph);
    graphs->launches -= entry->launches;
  }
  graphs->entries.erase(entry);
}

/// Null if the work cannot be recorded.
cudaGraphExec_t record(const Context& ctx, cudaStream_t recorder,
                       void (*enqueue)(void*, const Context&), void* user) {
  // Only this thread's calls are restricted meanwhile, and they are ours.
  if (cudaStreamBeginCapture(recorder, cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  bool complete = true;
  try {
    enqueue(user, Context::with_backend(ctx.backend(), ctx.device(), recorder));
  } catch (const Error&) {
    complete = false;
  }
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t instance = nullptr;
  complete = cudaStreamEndCapture(recorder, &graph) == cudaSuccess && complete;
  if (complete && cudaGraphInstantiate(&instance, graph, 0) != cudaSuccess) instance = nullptr;
  if (graph != nullptr) cudaGraphDestroy(graph);
  if (instance == nullptr) cudaGetLastError();
  return instance;
}

/// The graph for a key that comes at least a second time; null where there is none.
cudaGraphExec_t find_or_record(Graphs* graphs, const Context& ctx, const GraphKey& key,
                               std::int64_t launches, void (*enqueue)(void*, const Context&),
                               void* user) {
  auto& entries = graphs->entries;
  const std::size_t hash = std::hash<std::string>()(key.bytes());
  auto entry = entries.begin();
  while (entry != entries.end() && (entry->hash != hash || entry->key != key.bytes())) ++entry;
  if (entry == entries.end()) {
    // Perhaps the only time: addresses change from call to call where memory is not pooled.
    if (entries.size() >= kMostKeys) forget(graphs, std::prev(entries.end()));
    entries.emplace_front();
    entries.front().hash = hash;
    entries.front().key = key.bytes();
    entries.front().launches = launches;
    return nullptr;
  }
  entries.splice(entries.begin(), entries, entry);
  if (entry->graph != nullptr || entry->refused) return entry->graph;
  entry->graph = record(ctx, graphs->recorder, enqueue, user);
  entry->refused = entry->graph == nullptr;
  if (entry->graph == nullptr) return nullptr;
  graphs->launches += launches;
  for (auto last = std::prev(entries.end()); graphs->launches > kMostLaunchesKept;) {
    const auto before = std::prev(last);
    if (last->graph != nullptr) forget(graphs, last);
    last = before;
  }
  return entry->graph;
}

}  // namespace

void prepare_graphs(int device) {
  Graphs& graphs = graphs_of(device);
  const std::lock_guard<std::mutex> lock(graphs.mutex);
  if (graphs.recorder != nullptr) return;
  const DeviceGuard guard(device);
  check(cudaStreamCreateWithFlags(&graphs.recorder, cudaStreamNonBlocking),
        "cudaStreamCreateWithFlags");
}

void run_as_graph(const Context& ctx, const GraphKey& key, std::int64_t launches,
                  void (*enqueue)(void*, const Context&), void* user) {
  // A stream that is recorded already takes the launches themselves into its graph.
  if (!wanted(launches) || is_recorded(ctx)) return enqueue(user, ctx);
  {
    Graphs& graphs = graphs_of(ctx.device().index);
    const std::lock_guard<std::mutex> lock(graphs.mutex);
    if (graphs.recorder != nullptr) {
      if (const cudaGraphExec_t graph =
              find_or_record(&graphs, ctx, key, launches, enqueue, user)) {
        // Under the lock, because two threads may not launch a graph at the same time. On the
        // device its launches follow one another by themselves.
        return check(cudaGraphLaunch(graph, stream_of(ctx)), "cudaGraphLaunch");
      }
    }
  }
  enqueue(user, ctx);
}

}  // namespace penstock::cuda
