#include "quant/codec.h"

#include <cmath>
#include <cstring>
#include <string>

#include "base/error.h"
#include "quant/fit.h"
#include "quant/half.h"

namespace hotset::quant {

namespace {

constexpr size_t kGroupsPerBlock = kColBlock / kGroup;

size_t scale_bytes(Format f) { return is_quantized(f) ? kGroupsPerBlock * kRowBlock * 2 : 0; }
size_t codes_offset(Format f) { return scale_bytes(f) * (f == Format::q4_1 ? 2 : 1); }

uint16_t load_u16(const uint8_t* p) {
  uint16_t v;
  std::memcpy(&v, p, 2);
  return v;
}
float load_f32(const uint8_t* p) {
  float v;
  std::memcpy(&v, p, 4);
  return v;
}

// Where things stand inside one column block; g = group, r = row, c = column in the group or block.
void put_scale(uint8_t* block, size_t g, size_t r, uint16_t bits) {
  std::memcpy(block + (g * kRowBlock + r) * 2, &bits, 2);
}
void put_offset(uint8_t* block, size_t g, size_t r, uint16_t bits) {
  put_scale(block + scale_bytes(Format::q4_1), g, r, bits);
}
size_t code4_at(size_t g, size_t r, size_t c) { return ((g * 4 + c % 16 / 4) * kRowBlock + r) * 4 + c % 4; }
size_t code8_at(size_t g, size_t r, size_t c) { return ((g * 8 + c / 4) * kRowBlock + r) * 4 + c % 4; }

unsigned get_code4(const uint8_t* codes, size_t g, size_t r, size_t c) {
  const unsigned byte = codes[code4_at(g, r, c)];
  return c < 16 ? byte & 15u : byte >> 4;
}

// A column block whose weights all decode to 0.
void clear_block(Format f, uint8_t* block) {
  std::memset(block, 0, col_block_bytes(f));
  if (f == Format::q8_0) std::memset(block + codes_offset(f), 0x80, kColBlock * kRowBlock);
  if (f == Format::q4_0) std::memset(block + codes_offset(f), 0x88, kColBlock * kRowBlock / 2);
}

[[noreturn]] void refuse(const char* what, double value, size_t row, size_t col, Format f) {
  throw InvalidWeight(std::string(what) + " " + std::to_string(value) + " at row " + std::to_string(row) +
                      ", column " + std::to_string(col) + " cannot be stored as " + std::string(name(f)));
}

void check_weight(Format f, float w, size_t row, size_t col) {
  if (!std::isfinite(w)) refuse("weight", w, row, col, f);
  if (f == Format::f32) return;
  const bool fits = f == Format::bf16 ? std::isfinite(bf16_to_f32(f32_to_bf16(w)))
                                      : std::isfinite(f16_to_f32(f32_to_f16(w)));
  if (!fits) refuse("weight", w, row, col, f);
}

// The column block at (row0, col0) of a row-major matrix, cut at its edges.
struct Block {
  size_t row0, col0, rows, cols;
};

template <class Body>
void for_each_block(Format f, size_t rows, size_t cols, uint8_t* out, Body&& body) {
  for (size_t row0 = 0; row0 < rows; row0 += kRowBlock) {
    for (size_t col0 = 0; col0 < cols; col0 += kColBlock, out += col_block_bytes(f)) {
      clear_block(f, out);
      const size_t r = rows - row0 < kRowBlock ? rows - row0 : kRowBlock;
      const size_t c = cols - col0 < kColBlock ? cols - col0 : kColBlock;
      body(Block{row0, col0, r, c}, out);
    }
  }
}

void put_plain(Format f, uint8_t* block, size_t r, size_t c, float w) {
  const size_t at = c * kRowBlock + r;
  if (f == Format::f32) {
    std::memcpy(block + at * 4, &w, 4);
  } else {
    const uint16_t bits = f == Format::f16 ? f32_to_f16(w) : f32_to_bf16(w);
    std::memcpy(block + at * 2, &bits, 2);
  }
}

float get_plain(Format f, const uint8_t* block, size_t r, size_t c) {
  const size_t at = c * kRowBlock + r;
  if (f == Format::f32) return load_f32(block + at * 4);
  const uint16_t bits = load_u16(block + at * 2);
  return f == Format::f16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

void encode_plain(Format f, const float* w, size_t cols, Block b, uint8_t* out, ErrorSums& sums) {
  for (size_t r = 0; r < b.rows; ++r) {
    for (size_t c = 0; c < b.cols; ++c) {
      const float x = w[(b.row0 + r) * cols + b.col0 + c];
      check_weight(f, x, b.row0 + r, b.col0 + c);
      put_plain(f, out, r, c, x);
      const double error = std::abs(static_cast<double>(x) - get_plain(f, out, r, c));
      sums.squared_error += error * error;
      sums.squared_weight += static_cast<double>(x) * x;
      if (error > sums.max_abs_error) sums.max_abs_error = error;
    }
  }
}

// Writes what fit() found for rows r0.. of group g; returns its errors.
void put_fit(Format f, const FitResult& fitted, Block b, size_t g, size_t r0, size_t cols, uint8_t* out,
             ErrorSums& sums) {
  uint8_t* codes = out + codes_offset(f);
  for (size_t i = 0; i < kFitRows && r0 + i < b.rows; ++i) {
    const size_t r = r0 + i;
    put_scale(out, g, r, f32_to_f16(fitted.scale[i]));
    if (f == Format::q4_1) put_offset(out, g, r, f32_to_f16(fitted.offset[i]));
    for (size_t c = 0; c < cols; ++c) {
      const int code = static_cast<int>(fitted.code[c][i]);
      if (f == Format::q8_0) {
        codes[code8_at(g, r, c)] = static_cast<uint8_t>(code + 128);
      } else {
        uint8_t& byte = codes[code4_at(g, r, c)];
        const unsigned nibble = static_cast<unsigned>(f == Format::q4_0 ? code + 8 : code);
        byte = static_cast<uint8_t>(c < 16 ? (byte & 0xf0u) | nibble : (byte & 0x0fu) | nibble << 4);
      }
    }
    sums.squared_error += fitted.squared_error[i];
    sums.squared_weight += fitted.squared_weight[i];
    if (fitted.max_abs_error[i] > sums.max_abs_error) sums.max_abs_error = fitted.max_abs_error[i];
  }
}

void encode_quantized(Format f, const float* w, size_t cols, Block b, uint8_t* out, ErrorSums& sums) {
  FitInput in;
  FitResult fitted;
  for (size_t g = 0; g * kGroup < b.cols; ++g) {
    const size_t col0 = b.col0 + g * kGroup;
    in.cols = b.cols - g * kGroup < kGroup ? b.cols - g * kGroup : kGroup;
    for (size_t r0 = 0; r0 < b.rows; r0 += kFitRows) {
      for (size_t i = 0; i < kFitRows; ++i) {
        const size_t row = b.row0 + r0 + i;
        for (size_t c = 0; c < in.cols; ++c) {
          const float x = r0 + i < b.rows ? w[row * cols + col0 + c] : 0.0f;
          if (!(std::abs(x) <= kMaxF16)) check_weight(f, x, row, col0 + c);
          in.w[c][i] = x;
        }
      }
      fit(f, in, fitted);
      put_fit(f, fitted, b, g, r0, in.cols, out, sums);
    }
  }
}

// One 32-column GGUF block of row r into group g.
void put_ggml_block(Format f, const uint8_t* src, size_t g, size_t r, uint8_t* block) {
  uint8_t* codes = block + codes_offset(f);
  put_scale(block, g, r, load_u16(src));
  src += 2;
  if (f == Format::q4_1) {
    put_offset(block, g, r, load_u16(src));
    src += 2;
  }
  if (f == Format::q8_0) {
    for (size_t c = 0; c < kGroup; ++c) codes[code8_at(g, r, c)] = src[c] ^ 0x80u;
  } else {  // GGUF keeps columns c and c + 16 in one byte, as here
    for (size_t c = 0; c < kGroup / 2; ++c) codes[code4_at(g, r, c)] = src[c];
  }
}

void check_ggml_scales(Format f, const uint8_t* src, size_t row, size_t col) {
  const float scale = f16_to_f32(load_u16(src));
  if (!std::isfinite(scale)) refuse("scale", scale, row, col, f);
  if (f != Format::q4_1) return;
  const float offset = f16_to_f32(load_u16(src + 2));
  if (!std::isfinite(offset)) refuse("offset", offset, row, col, f);
}

void repack_quantized(Format f, const uint8_t* src, size_t cols, Block b, uint8_t* out) {
  const size_t bytes = f == Format::q8_0 ? 34 : f == Format::q4_0 ? 18 : 20;
  for (size_t r = 0; r < b.rows; ++r) {
    for (size_t g = 0; g * kGroup < b.cols; ++g) {
      const size_t row = b.row0 + r, col = b.col0 + g * kGroup;
      const uint8_t* ggml = src + (row * (cols / kGroup) + col / kGroup) * bytes;
      check_ggml_scales(f, ggml, row, col);
      put_ggml_block(f, ggml, g, r, out);
    }
  }
}

void repack_plain(Format f, const uint8_t* src, size_t cols, Block b, uint8_t* out) {
  const size_t bytes = f == Format::f32 ? 4 : 2;
  for (size_t r = 0; r < b.rows; ++r) {
    for (size_t c = 0; c < b.cols; ++c) {
      const size_t row = b.row0 + r, col = b.col0 + c;
      std::memcpy(out + (c * kRowBlock + r) * bytes, src + (row * cols + col) * bytes, bytes);
      const float w = get_plain(f, out, r, c);
      if (!std::isfinite(w)) refuse("weight", w, row, col, f);
    }
  }
}

void decode_block_row(Format f, const uint8_t* block, size_t r, size_t cols, float* out) {
  const uint8_t* codes = block + codes_offset(f);
  for (size_t c = 0; c < cols; ++c) {
    const size_t g = c / kGroup, at = (g * kRowBlock + r) * 2;
    if (!is_quantized(f)) {
      out[c] = get_plain(f, block, r, c);
    } else if (f == Format::q8_0) {
      out[c] = f16_to_f32(load_u16(block + at)) * static_cast<float>(codes[code8_at(g, r, c % kGroup)] - 128);
    } else {
      const float code = static_cast<float>(get_code4(codes, g, r, c % kGroup)),
                  scale = f16_to_f32(load_u16(block + at));
      out[c] = f == Format::q4_0 ? scale * (code - 8.0f)
                                 : scale * code + f16_to_f32(load_u16(block + scale_bytes(f) + at));
    }
  }
}

}  // namespace

ErrorSums encode(Format f, const float* w, size_t rows, size_t cols, uint8_t* out) {
  ErrorSums sums;
  for_each_block(f, rows, cols, out, [&](Block b, uint8_t* block) {
    is_quantized(f) ? encode_quantized(f, w, cols, b, block, sums) : encode_plain(f, w, cols, b, block, sums);
  });
  return sums;
}

void repack_ggml(Format f, const uint8_t* src, size_t rows, size_t cols, uint8_t* out) {
  if (is_quantized(f) && cols % kGroup != 0) {
    throw InvalidArgument(std::string(name(f)) + " rows must be a multiple of 32 columns, got " +
                          std::to_string(cols));
  }
  for_each_block(f, rows, cols, out, [&](Block b, uint8_t* block) {
    is_quantized(f) ? repack_quantized(f, src, cols, b, block) : repack_plain(f, src, cols, b, block);
  });
}

void decode_row(Format f, const uint8_t* packed, size_t row, size_t cols, float* out) {
  const uint8_t* block = packed + row / kRowBlock * row_block_bytes(f, cols);
  for (size_t col0 = 0; col0 < cols; col0 += kColBlock, block += col_block_bytes(f)) {
    decode_block_row(f, block, row % kRowBlock, cols - col0 < kColBlock ? cols - col0 : kColBlock,
                     out + col0);
  }
}

}  // namespace hotset::quant
