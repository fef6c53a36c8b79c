// Into which cache a kernel fetches what it will read, and how far ahead: by the CPU, as measured
// (docs/decisions/log.md).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/generic/vec.h"

namespace hotset::kernels {

extern const bool kStreamToL2;  // dispatch.cc

namespace generic {

enum Cache { kL2 = 2, kL1 = 3 };  // localities of __builtin_prefetch

template <size_t bytes, Cache kTo>
HOTSET_INLINE void prefetch(const uint8_t* p) {
#pragma GCC unroll 32
  for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, kTo);
}

}  // namespace generic

}  // namespace hotset::kernels
