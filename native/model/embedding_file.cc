#include "model/embedding_file.h"

#include <algorithm>
#include <array>
#include <string>

#include "base/crc32c.h"
#include "base/error.h"
#include "base/trace.h"
#include "quant/codec.h"

namespace hotset::model {
namespace {

constexpr size_t kPieceBytes = size_t{8} << 20;  // of the file, while checksums are made

uint64_t down_to(uint64_t n, uint64_t to) { return n / to * to; }
uint64_t up_to(uint64_t n, uint64_t to) { return down_to(n + to - 1, to); }

}  // namespace

EmbeddingFile::EmbeddingFile(TensorRef tensor, const FileChecksums* sums, io::ReaderOptions io)
    : tensor_(std::move(tensor)), io_(std::move(io)) {
  io_.depth = kBatch;
  io_.merged_bytes = 0;  // each read into its own slot, without a buffer in between
  reader_ = io::open_reader(tensor_.path, io_);
  slot_bytes_ = up_to(block_bytes(), reader_->alignment()) + reader_->alignment();
  memory_ = Buffer(kBatch * slot_bytes_, false);
  learn(sums);
}

size_t EmbeddingFile::block_bytes() const {
  return quant::row_block_bytes(tensor_.format, static_cast<size_t>(tensor_.cols));
}

size_t EmbeddingFile::blocks() const { return quant::row_blocks(static_cast<size_t>(tensor_.rows)); }

uint64_t EmbeddingFile::begin_of(size_t block) const { return tensor_.offset + block * block_bytes(); }

// In pieces of the file, whose checksums and row blocks end at different places.
void EmbeddingFile::learn(const FileChecksums* sums) {
  crc32c_.assign(blocks(), 0);
  const uint64_t step =
      sums ? std::max<uint64_t>(down_to(kPieceBytes, sums->block_bytes), sums->block_bytes) : kPieceBytes;
  const uint64_t first = sums ? down_to(tensor_.offset, sums->block_bytes) : tensor_.offset;
  const uint64_t end = tensor_.offset + tensor_.bytes;
  const uint64_t last = sums ? std::min(sums->file_bytes, up_to(end, sums->block_bytes)) : end;
  Buffer piece(static_cast<size_t>(std::min(step, last - first)));
  size_t block = 0;
  for (uint64_t at = first; at < last; at += step) {
    const auto size = static_cast<size_t>(std::min(step, last - at));
    io::read_all(tensor_.path, at, {piece.data(), size});
    if (sums) verify(*sums, static_cast<size_t>(at / sums->block_bytes), {piece.data(), size});
    while (block < blocks()) {
      const uint64_t from = std::max(begin_of(block), at), to = std::min(begin_of(block + 1), at + size);
      if (from < to) crc32c_[block] = crc32c(piece.data() + (from - at), to - from, crc32c_[block]);
      if (begin_of(block + 1) > at + size) break;
      ++block;
    }
  }
}

void EmbeddingFile::rows(std::span<const int32_t> tokens, ThreadPool& pool, Rows to) {
  const trace::Span span("read embedding");
  const auto cols = static_cast<size_t>(tensor_.cols);
  for (size_t first = 0; first < tokens.size(); first += kBatch) {
    const auto part = tokens.subspan(first, std::min(kBatch, tokens.size() - first));
    read(part);
    pool.parallel_for(part.size(), 8, [&](size_t begin, size_t end, size_t) {
      for (size_t i = begin; i < end; ++i) {
        const auto row = static_cast<size_t>(part[i]);
        quant::decode_row(tensor_.format, checked(i, row / quant::kRowBlock), row % quant::kRowBlock, cols,
                          to.row(first + i));
      }
    });
  }
}

void EmbeddingFile::read(std::span<const int32_t> tokens) {
  if (!reader_) reader_ = io::open_reader(tensor_.path, io_);
  const size_t alignment = reader_->alignment();
  std::array<io::Read, kBatch> reads;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const size_t block = static_cast<size_t>(tokens[i]) / quant::kRowBlock;
    const uint64_t begin = down_to(begin_of(block), alignment), end = up_to(begin_of(block + 1), alignment);
    reads[i] = {begin, {memory_.data() + i * slot_bytes_, static_cast<size_t>(end - begin)}, i};
  }
  try {
    std::array<uint64_t, kBatch> ended;
    for (size_t sent = 0, done = 0; done < tokens.size();) {
      sent += reader_->submit({reads.data() + sent, tokens.size() - sent});
      done += reader_->wait({ended.data(), sent - done}, sent - done);
    }
  } catch (...) {
    reader_.reset();
    throw;
  }
}

const uint8_t* EmbeddingFile::checked(size_t slot, size_t block) const {
  const uint64_t begin = begin_of(block);
  const uint8_t* data = memory_.data() + slot * slot_bytes_ + begin % reader_->alignment();
  const uint32_t got = crc32c(data, block_bytes());
  if (got == crc32c_[block]) return data;
  throw InvalidWeight(tensor_.path + ": the embedding's rows from " +
                      std::to_string(block * quant::kRowBlock) + " on (" + std::to_string(block_bytes()) +
                      " bytes at offset " + std::to_string(begin) + ") have checksum " + std::to_string(got) +
                      ", wanted " + std::to_string(crc32c_[block]) +
                      "; the file is damaged or the drive failed: copy it again or convert again");
}

}  // namespace hotset::model
