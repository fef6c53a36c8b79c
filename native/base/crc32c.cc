#include "base/crc32c.h"

#include <array>
#include <cstring>

#include "base/cpu.h"

#if defined(__x86_64__)
#include <nmmintrin.h>
#define HOTSET_CRC_TARGET __attribute__((target("sse4.2")))
#elif defined(__aarch64__)
#include <arm_acle.h>
#define HOTSET_CRC_TARGET __attribute__((target("+crc")))
#endif

namespace hotset {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78;  // Castagnoli, bits reversed

constexpr std::array<uint32_t, 256> make_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? kPolynomial : 0);
    table[i] = crc;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kTable = make_table();

uint32_t crc_table(uint32_t crc, const uint8_t* p, size_t n) {
  for (; n > 0; --n) crc = (crc >> 8) ^ kTable[(crc ^ *p++) & 0xff];
  return crc;
}

#ifdef HOTSET_CRC_TARGET

// The register after 2^k zero bytes is a linear map of the register before: 32 columns over GF(2), looked up
// a byte of the register at a time.
struct ZeroRun {
  uint32_t table[4][256];

  explicit ZeroRun(int log2_bytes) {
    uint32_t column[32];
    for (int i = 0; i < 32; ++i) column[i] = crc_table_zero(1u << i);
    for (; log2_bytes > 0; --log2_bytes) square(column);
    for (int byte = 0; byte < 4; ++byte)
      for (uint32_t v = 0; v < 256; ++v) table[byte][v] = apply(column, v << (8 * byte));
  }
  uint32_t operator()(uint32_t crc) const {
    return table[0][crc & 0xff] ^ table[1][crc >> 8 & 0xff] ^ table[2][crc >> 16 & 0xff] ^
           table[3][crc >> 24];
  }

 private:
  static uint32_t crc_table_zero(uint32_t crc) { return (crc >> 8) ^ kTable[crc & 0xff]; }
  static uint32_t apply(const uint32_t* column, uint32_t v) {
    uint32_t sum = 0;
    for (int i = 0; i < 32; ++i)
      if (v >> i & 1) sum ^= column[i];
    return sum;
  }
  static void square(uint32_t* column) {
    uint32_t twice[32];
    for (int i = 0; i < 32; ++i) twice[i] = apply(column, column[i]);
    memcpy(column, twice, sizeof(twice));
  }
};

uint64_t load64(const uint8_t* p) {
  uint64_t v;
  memcpy(&v, p, sizeof(v));
  return v;
}

HOTSET_CRC_TARGET inline uint32_t step8(uint32_t crc, uint64_t v) {
#if defined(__x86_64__)
  return static_cast<uint32_t>(_mm_crc32_u64(crc, v));
#else
  return __crc32cd(crc, v);
#endif
}

HOTSET_CRC_TARGET inline uint32_t step1(uint32_t crc, uint8_t v) {
#if defined(__x86_64__)
  return _mm_crc32_u8(crc, v);
#else
  return __crc32cb(crc, v);
#endif
}

// The instruction takes 3 cycles and one can start every cycle: three runs of 2^k bytes side by side, then
// crc(a b c) = shift(shift(crc(a)) ^ crc(b)) ^ crc(c).
HOTSET_CRC_TARGET uint32_t crc_three_runs(uint32_t crc, const uint8_t* p, size_t run, const ZeroRun& shift) {
  uint32_t a = crc, b = 0, c = 0;
  for (size_t i = 0; i < run; i += 8) {
    a = step8(a, load64(p + i));
    b = step8(b, load64(p + run + i));
    c = step8(c, load64(p + 2 * run + i));
  }
  return shift(shift(a) ^ b) ^ c;
}

HOTSET_CRC_TARGET uint32_t crc_hardware(uint32_t crc, const uint8_t* p, size_t n) {
  // Two lengths: the long one hides the cost of joining, the short one serves the rest and small blocks.
  constexpr int kLong = 12, kShort = 8;
  static const ZeroRun long_shift(kLong), short_shift(kShort);
  for (; n >= 3u << kLong; n -= 3u << kLong, p += 3u << kLong)
    crc = crc_three_runs(crc, p, size_t{1} << kLong, long_shift);
  for (; n >= 3u << kShort; n -= 3u << kShort, p += 3u << kShort)
    crc = crc_three_runs(crc, p, size_t{1} << kShort, short_shift);
  for (; n >= 8; n -= 8, p += 8) crc = step8(crc, load64(p));
  for (; n > 0; --n) crc = step1(crc, *p++);
  return crc;
}

#endif

}  // namespace

uint32_t crc32c(const void* data, size_t bytes, uint32_t crc) {
  const auto* p = static_cast<const uint8_t*>(data);
#ifdef HOTSET_CRC_TARGET
  if (cpu_features().crc32c) return ~crc_hardware(~crc, p, bytes);
#endif
  return ~crc_table(~crc, p, bytes);
}

}  // namespace hotset
