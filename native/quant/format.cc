#include "quant/format.h"

#include <array>

namespace hotset::quant {

namespace {
constexpr std::array<std::string_view, 6> kNames = {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"};
}  // namespace

std::string_view name(Format f) { return kNames[static_cast<size_t>(f)]; }

std::optional<Format> parse_format(std::string_view s) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == s) return static_cast<Format>(i);
  }
  return std::nullopt;
}

}  // namespace hotset::quant
