// Weight formats: conversions, encode against its own bounds, GGUF blocks against a straightforward decoder.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "quant/codec.h"
#include "quant/half.h"

namespace {

using namespace hotset;
using quant::Format;

constexpr Format kFormats[] = {Format::f32,  Format::f16,  Format::bf16,
                               Format::q8_0, Format::q4_0, Format::q4_1};
constexpr Format kGroupFormats[] = {Format::q8_0, Format::q4_0, Format::q4_1};

std::vector<float> normal(size_t n, float scale, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> distribution(0.0f, scale);
  std::vector<float> out(n);
  for (float& x : out) x = distribution(rng);
  return out;
}

std::vector<uint8_t> encode(Format f, const std::vector<float>& w, size_t rows, size_t cols,
                            quant::ErrorSums* sums = nullptr) {
  std::vector<uint8_t> packed(quant::packed_bytes(f, rows, cols), 0xee);
  const quant::ErrorSums found = quant::encode(f, w.data(), rows, cols, packed.data());
  if (sums) *sums = found;
  return packed;
}

std::vector<float> decode(Format f, const std::vector<uint8_t>& packed, size_t rows, size_t cols) {
  std::vector<float> out(rows * cols);
  for (size_t r = 0; r < rows; ++r) quant::decode_row(f, packed.data(), r, cols, &out[r * cols]);
  return out;
}

std::string message_of(Format f, const std::vector<float>& w, size_t rows, size_t cols) {
  try {
    encode(f, w, rows, cols);
  } catch (const InvalidWeight& e) {
    return e.what();
  }
  return "";
}

void test_names() {
  for (const Format f : kFormats) CHECK(quant::parse_format(quant::name(f)) == f);
  CHECK(!quant::parse_format("q5_0"));
  CHECK(!quant::parse_format(""));
}

// All 65536 values, and between neighbours the nearer one, ties to even.
void test_halves() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto h = static_cast<uint16_t>(bits);
    const float x = quant::f16_to_f32(h), b = quant::bf16_to_f32(h);
    CHECK(std::isnan(x) ? std::isnan(quant::f16_to_f32(quant::f32_to_f16(x))) : quant::f32_to_f16(x) == h);
    CHECK(std::isnan(b) ? std::isnan(quant::bf16_to_f32(quant::f32_to_bf16(b))) : quant::f32_to_bf16(b) == h);
  }
  for (uint16_t h = 0; h < 0x7bff; ++h) {
    const auto next = static_cast<uint16_t>(h + 1);
    const float middle = (quant::f16_to_f32(h) + quant::f16_to_f32(next)) / 2;
    CHECK(quant::f32_to_f16(middle) == (h % 2 == 0 ? h : next));
    CHECK(quant::f32_to_f16(std::nextafter(middle, 0.0f)) == h);
    CHECK(quant::f32_to_f16(std::nextafter(middle, 1e9f)) == next);
  }
  const int exponents[] = {-24, -15, -14, 0, 15};
  for (const int e : exponents)
    CHECK(quant::f16_to_f32(quant::f32_to_f16(std::ldexp(1.0f, e))) == std::ldexp(1.0f, e));
  CHECK(quant::f32_to_f16(65519.9f) == 0x7bff && quant::f32_to_f16(65520.0f) == 0x7c00);
}

// Reported errors are those of the decoded matrix; padding decodes to 0.
void test_error_sums() {
  for (const Format f : kFormats) {
    for (const size_t cols : {32, 64, 100, 192, 7}) {
      const size_t rows = 21;
      const std::vector<float> w = normal(rows * cols, 0.5f, 3);
      quant::ErrorSums sums;
      const std::vector<uint8_t> packed = encode(f, w, rows, cols, &sums);
      const std::vector<float> back = decode(f, packed, rows, cols);
      double error2 = 0, weight2 = 0, worst = 0;
      for (size_t i = 0; i < w.size(); ++i) {
        const double error = std::abs(static_cast<double>(w[i]) - back[i]);
        error2 += error * error;
        weight2 += static_cast<double>(w[i]) * w[i];
        worst = std::max(worst, error);
      }
      CHECK(std::abs(sums.squared_error - error2) <= 1e-5 * error2);
      CHECK(std::abs(sums.squared_weight - weight2) <= 1e-5 * weight2);
      CHECK(std::abs(sums.max_abs_error - worst) <= 1e-5 * worst);
      const size_t all_cols = quant::col_blocks(cols) * 64,
                   from = f == Format::q4_1 ? (cols + 31) / 32 * 32 : cols;
      for (size_t r = 0; r < 32; ++r) {
        std::vector<float> row(all_cols);
        quant::decode_row(f, packed.data(), r, all_cols, row.data());
        for (size_t c = r < rows ? from : 0; c < all_cols; ++c) CHECK(row[c] == 0.0f);
      }
    }
  }
}

// What a plain quantizer (scale = extreme / end of range) loses on one group, in double, with f16 parameters.
double plain_error2(Format f, const float* w) {
  float lo = w[0], hi = w[0], extreme = 0;
  for (size_t i = 0; i < 32; ++i) {
    lo = std::min(lo, w[i]);
    hi = std::max(hi, w[i]);
    if (std::abs(w[i]) > std::abs(extreme)) extreme = w[i];
  }
  const auto half = [](float x) { return static_cast<double>(quant::f16_to_f32(quant::f32_to_f16(x))); };
  const double scale =
      f == Format::q4_1 ? half((hi - lo) / 15) : half(extreme / (f == Format::q8_0 ? -128 : -8));
  const double offset = f == Format::q4_1 ? half(lo) : 0;
  const double first = f == Format::q8_0   ? -128
                       : f == Format::q4_0 ? -8
                                           : 0,
               last = first + (f == Format::q8_0 ? 255 : 15);
  double error2 = 0;
  for (size_t i = 0; i < 32; ++i) {
    const double code = scale == 0 ? 0 : std::clamp(std::nearbyint((w[i] - offset) / scale), first, last);
    error2 += std::pow(w[i] - (scale * code + offset), 2);
  }
  return error2;
}

// The search never loses to the plain scale, and wins by a margin on normal weights at 4 bits.
void test_search_beats_plain_scale() {
  for (const Format f : kGroupFormats) {
    for (const float scale : {1.0f, 0.02f, 1000.0f, 1e-4f}) {
      const size_t rows = 64, cols = 256;
      const std::vector<float> w = normal(rows * cols, scale, 5);
      const std::vector<float> back = decode(f, encode(f, w, rows, cols), rows, cols);
      double total = 0, plain_total = 0;
      for (size_t i = 0; i < w.size(); i += 32) {
        double error2 = 0;
        for (size_t j = i; j < i + 32; ++j) error2 += std::pow(static_cast<double>(w[j]) - back[j], 2);
        const double plain = plain_error2(f, &w[i]);
        CHECK(error2 <= plain * 1.0001);
        total += error2;
        plain_total += plain;
      }
      if (f != Format::q8_0) CHECK(total < 0.93 * plain_total);
    }
  }
}

// Weights that a format can hold exactly come back exactly: a group that spans the whole code range.
void test_exact_values() {
  for (const Format f : kGroupFormats) {
    const int first = f == Format::q8_0   ? -128
                      : f == Format::q4_0 ? -8
                                          : 0,
              count = f == Format::q8_0 ? 256 : 16;
    const float offset = f == Format::q4_1 ? -0.75f : 0.0f;
    for (const float scale : {0.5f, 0.0625f, -0.125f, 0.33325195f}) {
      if (f == Format::q4_1 && scale < 0) continue;
      std::vector<float> w(32);
      for (int i = 0; i < 32; ++i)
        w[static_cast<size_t>(i)] = scale * static_cast<float>(first + i * 37 % count) + offset;
      w[31] = scale * static_cast<float>(first) + offset;
      w[30] = scale * static_cast<float>(first + count - 1) + offset;
      CHECK(decode(f, encode(f, w, 1, 32), 1, 32) == w);
    }
  }
}

void test_special_groups() {
  for (const Format f : kFormats) {
    const std::vector<float> zero(3 * 70, 0.0f), tiny(3 * 70, 1e-30f);
    CHECK(decode(f, encode(f, zero, 3, 70), 3, 70) == zero);
    for (const float x : decode(f, encode(f, tiny, 3, 70), 3, 70)) CHECK(std::abs(x) <= 1.1e-30f);
    const std::vector<float> constant(64, 0.71875f);  // exact in every format
    CHECK(decode(f, encode(f, constant, 1, 64), 1, 64) == constant);
    std::vector<float> one(64, 0.0f);
    one[40] = -3.75f;  // 15 steps of 0.25
    CHECK(decode(f, encode(f, one, 1, 64), 1, 64) == one);
    std::vector<float> wide(64, 65504.0f);
    for (size_t i = 0; i < 64; i += 2) wide[i] = -65504.0f;
    for (const float x : decode(f, encode(f, wide, 1, 64), 1, 64))
      CHECK(std::abs(std::abs(x) - 65504.0f) <= 65504.0f / 15);
    CHECK(encode(f, {}, 0, 64).empty() && encode(f, {}, 5, 0).empty());
  }
}

void test_bad_weights() {
  const float bad[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                       -std::numeric_limits<float>::infinity()};
  for (const Format f : kFormats) {
    for (const float x : bad) {
      std::vector<float> w(20 * 70, 1.0f);
      w[18 * 70 + 66] = x;
      const std::string message = message_of(f, w, 20, 70);
      CHECK(message.find("row 18, column 66") != std::string::npos);
      CHECK(message.find(quant::name(f)) != std::string::npos);
    }
    const bool wide = f == Format::f32 || f == Format::bf16;
    CHECK(message_of(f, {65504.0f}, 1, 1).empty());
    CHECK(message_of(f, {-70000.0f}, 1, 1).empty() == wide);
  }
  CHECK(!message_of(Format::bf16, {3.4e38f}, 1, 1).empty());
}

// GGUF blocks of random bytes, decoded straight from their definition.
size_t ggml_bytes(Format f) { return f == Format::q8_0 ? 34 : f == Format::q4_0 ? 18 : 20; }

float ggml_value(Format f, const uint8_t* block, size_t i) {
  uint16_t d, m;
  std::memcpy(&d, block, 2);
  std::memcpy(&m, block + 2, 2);
  const float scale = quant::f16_to_f32(d);
  if (f == Format::q8_0) return scale * static_cast<float>(static_cast<int8_t>(block[2 + i]));
  const uint8_t byte = block[(f == Format::q4_0 ? 2 : 4) + i % 16];
  const float code = static_cast<float>(i < 16 ? byte & 15 : byte >> 4);
  return f == Format::q4_0 ? scale * (code - 8) : scale * code + quant::f16_to_f32(m);
}

std::vector<uint8_t> random_ggml(Format f, size_t blocks) {
  std::mt19937 rng(9);
  std::vector<uint8_t> src(blocks * ggml_bytes(f));
  for (uint8_t& byte : src) byte = static_cast<uint8_t>(rng());
  for (size_t b = 0; b < blocks; ++b) {  // finite scales and offsets: clear one exponent bit
    src[b * ggml_bytes(f) + 1] &= 0xbf;
    if (f == Format::q4_1) src[b * ggml_bytes(f) + 3] &= 0xbf;
  }
  return src;
}

void test_repack_quantized() {
  for (const Format f : kGroupFormats) {
    for (const size_t cols : {32, 64, 96, 320}) {
      const size_t rows = 19, groups = cols / 32;
      std::vector<uint8_t> src = random_ggml(f, rows * groups),
                           packed(quant::packed_bytes(f, rows, cols), 0xee);
      quant::repack_ggml(f, src.data(), rows, cols, packed.data());
      const std::vector<float> back = decode(f, packed, rows, cols);
      for (size_t i = 0; i < back.size(); ++i) {
        CHECK(back[i] == ggml_value(f, &src[i / 32 * ggml_bytes(f)], i % 32));
      }
      src[(groups + groups - 1) * ggml_bytes(f) + 1] = 0x7c;  // infinite scale: row 1, last group
      CHECK_THROWS(InvalidWeight, quant::repack_ggml(f, src.data(), rows, cols, packed.data()));
    }
    uint8_t none = 0;
    CHECK_THROWS(InvalidArgument, quant::repack_ggml(f, &none, 1, 33, &none));
  }
}

void test_repack_plain() {
  const size_t rows = 18, cols = 70;
  const std::vector<float> w = normal(rows * cols, 1.0f, 11);
  for (const Format f : {Format::f32, Format::f16, Format::bf16}) {
    const size_t bytes = f == Format::f32 ? 4 : 2;
    std::vector<uint8_t> src(w.size() * bytes), packed(quant::packed_bytes(f, rows, cols));
    for (size_t i = 0; i < w.size(); ++i) {
      const uint16_t half = f == Format::f16 ? quant::f32_to_f16(w[i]) : quant::f32_to_bf16(w[i]);
      if (f == Format::f32) std::memcpy(&src[i * 4], &w[i], 4);
      if (f != Format::f32) std::memcpy(&src[i * 2], &half, 2);
    }
    quant::repack_ggml(f, src.data(), rows, cols, packed.data());
    CHECK(packed == encode(f, w, rows, cols));
    std::memset(&src[5 * bytes], 0xff, bytes);
    CHECK_THROWS(InvalidWeight, quant::repack_ggml(f, src.data(), rows, cols, packed.data()));
  }
}

}  // namespace

int main() {
  test_names();
  test_halves();
  test_error_sums();
  test_search_beats_plain_scale();
  test_exact_values();
  test_special_groups();
  test_bad_weights();
  test_repack_quantized();
  test_repack_plain();
  return check::report();
}
