// CRC-32C (Castagnoli), as in iSCSI and ext4: hardware instruction where there is one, table otherwise.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hotset {

uint32_t crc32c(const void* data, size_t bytes, uint32_t crc = 0);  // chainable: crc32c(b, n, crc32c(a, m))

}  // namespace hotset
