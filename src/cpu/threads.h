// The library's own pool of threads. Work items are the same for any number of threads, and each
// item's arithmetic is sequential, so results do not depend on that number.
#pragma once

#include <cstdint>

namespace penstock::cpu {

int thread_count();
void set_thread_count(int n);

/// Call fn(user, i) for every i in [0, n) and return when all are done. The calling thread takes
/// part. Runs in the calling thread alone when the pool is busy or from within an item. The first
/// exception thrown by an item is rethrown here.
void parallel_for(std::int64_t n, void (*fn)(void*, std::int64_t), void* user);

}  // namespace penstock::cpu
