// The weights of one model, by role, in memory exactly once.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/memory.h"
#include "model/descriptor.h"
#include "quant/format.h"

namespace hotset::model {

// Where one weight lies. cols = 0: a vector of `rows` f32.
struct TensorRef {
  std::string role;  // docs/reference/store.md
  int64_t layer = -1;
  std::string path;
  uint64_t offset = 0, bytes = 0;
  quant::Format format = quant::Format::f32;
  int64_t rows = 0, cols = 0;
};

// CRC-32C of every `block_bytes` of a file; the last block may be shorter.
struct FileChecksums {
  std::string path;
  uint64_t block_bytes = 0, file_bytes = 0;
  std::vector<uint32_t> crc32c;
};

// Compares `data`, which starts at block `first` of the file, with its checksums. Throws InvalidWeight.
void verify(const FileChecksums& sums, size_t first, std::span<const uint8_t> data);

// A packed matrix; `data` belongs to Weights.
struct Matrix {
  const uint8_t* data = nullptr;
  quant::Format format = quant::Format::f32;
  size_t rows = 0, cols = 0;

  explicit operator bool() const { return data != nullptr; }
  size_t row_blocks() const { return quant::row_blocks(rows); }
  size_t col_blocks() const { return quant::col_blocks(cols); }
  size_t row_block_bytes() const { return quant::row_block_bytes(format, cols); }
  size_t bytes() const { return quant::packed_bytes(format, rows, cols); }
};

using Vector = std::vector<float>;  // empty = absent

struct LayerWeights {
  Matrix q, k, v, o, gate, up, down;
  Vector attn_norm, attn_norm_bias, attn_post_norm, ffn_norm, ffn_norm_bias, ffn_post_norm, q_norm, k_norm;
  Vector q_bias, k_bias, v_bias, o_bias, gate_bias, up_bias, down_bias;
};

enum class LoadMode : uint8_t { read, mmap };

class Weights {
 public:
  struct Parts {
    bool ffn = true;    // false: gate, up and down are elsewhere
    bool embed = true;  // false: the embedding stays in its file, and `embed` has a shape but no data
  };
  // Reads (or maps) all tensors and checks that every role the descriptor needs is there with its shape.
  // What is read is compared with its checksums; what is mapped is not (that would read it all).
  // Throws InvalidArgument (unknown, missing, doubled role; wrong shape), IoError, OutOfMemory, InvalidWeight
  // (checksum).
  Weights(const ModelDesc& desc, const std::vector<TensorRef>& tensors,
          const std::vector<FileChecksums>& checksums, LoadMode mode, Parts parts);

  Matrix embed, position, head;  // head = embed where tied
  Vector final_norm, final_norm_bias, head_bias;
  std::vector<LayerWeights> layers;

  size_t bytes() const { return bytes_; }  // of all tensors held
  size_t bytes_per_token() const;          // read from memory for one decoded token
  void touch() const;                      // brings mapped pages in

 private:
  struct Source {  // the part of a file that holds the weights, from `begin` on in memory
    std::string path;
    uint64_t begin, end;
    const uint8_t* data;
  };
  void find_sources(std::vector<const TensorRef*> tensors);
  void read(Source& s, const FileChecksums* sums);
  void map(Source& s);
  void place(const ModelDesc& desc, const TensorRef& t);
  const uint8_t* address(const TensorRef& t) const;

  std::vector<Source> sources_;
  std::vector<Buffer> buffers_;
  std::vector<MappedFile> mappings_;
  size_t bytes_ = 0;
};

}  // namespace hotset::model
