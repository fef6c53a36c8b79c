// How weights are cut into chunks, on CPUs with all kinds of second caches.
#include <algorithm>

#include "check.h"
#include "kernels/kernels.h"
#include "model/linear.h"
#include "quant/format.h"

using hotset::kernels::kTile;
using hotset::model::BlockSize;
using hotset::model::chunk_blocks;
using hotset::quant::Format;
using hotset::quant::kRowBlock;

namespace {

BlockSize row_block(Format format, size_t cols) {
  return {hotset::quant::row_block_bytes(format, cols), kRowBlock};
}

size_t bytes_with_products(BlockSize block) { return block.bytes + block.products * kTile * sizeof(float); }

// A chunk fills its part of the cache as far as whole blocks can, and never more, but for a single block.
void test_many_tokens() {
  for (const size_t l2 : {128 << 10, 256 << 10, 512 << 10, 1 << 20, 1280 << 10, 2 << 20, 3 << 20})
    for (const Format format : {Format::q4_0, Format::q4_1, Format::q8_0, Format::f16, Format::f32})
      for (const size_t cols : {64, 576, 1536, 4096, 14336})
        for (const size_t blocks : {1, 36, 96, 896})
          for (const size_t threads : {1, 2, 16}) {
            const BlockSize block = row_block(format, cols);
            const size_t chunk = chunk_blocks(blocks, block, 512, threads, l2),
                         bytes = bytes_with_products(block);
            const size_t each = (blocks + threads - 1) / threads;
            CHECK(chunk >= 1 && chunk <= each);
            CHECK(chunk == 1 || chunk * bytes <= l2 / 4);
            const bool whole = chunk == (threads == 1 ? each : std::max<size_t>(1, each / 8));
            CHECK(whole || (chunk + 1) * bytes > l2 / 4);
          }
}

// Products count, too: of a narrow matrix they are more than the weights.
void test_products() {
  const BlockSize narrow = row_block(Format::q4_0, 64), pair{2 * narrow.bytes, 2 * narrow.products};
  CHECK(chunk_blocks(10000, narrow, 512, 1, 1 << 20) == (256 << 10) / (576 + 1024));
  CHECK(chunk_blocks(10000, pair, 512, 1, 1 << 20) == (256 << 10) / (2 * (576 + 1024)));
}

void test_unknown_cache() {
  const BlockSize block = row_block(Format::q4_0, 4096);
  CHECK(chunk_blocks(896, block, 512, 1, 0) == chunk_blocks(896, block, 512, 1, 1 << 20));
  CHECK(chunk_blocks(896, block, 1, 2, 0) == chunk_blocks(896, block, 1, 2, 1 << 20));
}

// Weights that are read once: eight chunks a thread, fewer where they would be short, whatever the cache.
void test_few_tokens() {
  const BlockSize block = row_block(Format::q4_0, 4096);
  CHECK(chunk_blocks(896, block, 1, 2, 256 << 10) == 56);
  CHECK(chunk_blocks(896, block, kTile, 2, 2 << 20) == 56);
  CHECK(chunk_blocks(4, row_block(Format::q4_0, 576), 1, 2, 1 << 20) == 2);
}

}  // namespace

int main() {
  test_many_tokens();
  test_products();
  test_unknown_cache();
  test_few_tokens();
  return check::report();
}
