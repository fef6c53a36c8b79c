// The bound of decode: how fast all threads together can read memory.
#pragma once

#include <cstddef>

namespace hotset {

// Bytes/s of sequential reads over a buffer of `bytes` in huge pages, cut into one part per thread: the best
// pass within `seconds` (at least two). Take a buffer well above the last cache. Throws InvalidArgument,
// OutOfMemory.
double memory_bandwidth(size_t threads, size_t bytes, double seconds);

}  // namespace hotset
