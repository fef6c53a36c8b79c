// What one step computes: new tokens of one or more sequences.
#pragma once

#include <cstdint>
#include <vector>

namespace hotset::model {

enum class Want : uint8_t { none = 0, last = 1, all = 2 };  // logits after which of the new tokens

struct BatchSequence {
  int32_t seq;
  Want want;
  size_t first_row;  // of its new tokens in the batch
  size_t count;
  int64_t position;     // of its first new token
  int64_t rope_length;  // dynamic RoPE: length that the frequencies are made for
};

struct Batch {
  std::vector<BatchSequence> sequences;
  std::vector<int32_t> tokens;  // [rows]
  bool draft = false;           // only a guess is wanted, see Ffn::run
  size_t rows() const { return tokens.size(); }
};

}  // namespace hotset::model
