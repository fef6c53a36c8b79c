// An embedding that stays on the drive: a token needs one row of it, so a large vocabulary takes no memory.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/memory.h"
#include "base/thread_pool.h"
#include "io/reader.h"
#include "model/activations.h"
#include "model/weights.h"

namespace hotset::model {

// Rows lie in blocks of 16 (quant/format.h), each of which is one read. Not thread-safe.
class EmbeddingFile {
 public:
  // Goes through the whole matrix once: compares it with the file's checksums (null: there are none) and
  // keeps one for each row block, with which every later read is compared. Throws IoError, InvalidWeight,
  // OutOfMemory.
  EmbeddingFile(TensorRef tensor, const FileChecksums* sums, io::ReaderOptions io);

  // to.row(i) = row tokens[i]. Throws IoError, InvalidWeight; the next call starts with a new reader.
  void rows(std::span<const int32_t> tokens, ThreadPool& pool, Rows to);

 private:
  static constexpr size_t kBatch = 64;  // reads in flight
  size_t block_bytes() const;
  size_t blocks() const;
  uint64_t begin_of(size_t block) const;  // in the file
  void learn(const FileChecksums* sums);
  const uint8_t* checked(size_t slot, size_t block) const;
  void read(std::span<const int32_t> tokens);

  TensorRef tensor_;
  io::ReaderOptions io_;
  size_t slot_bytes_;
  Buffer memory_;                       // [kBatch] slots
  std::unique_ptr<io::Reader> reader_;  // after what it reads into: it waits for what is under way
  std::vector<uint32_t> crc32c_;
};

}  // namespace hotset::model
