// SparseFfn for many tokens: every neuron, in pieces that stream from the drive while the piece before is
// computed.
#include <algorithm>
#include <cstring>

#include "base/trace.h"
#include "model/ffn_floor.h"
#include "pipeline/sparse_ffn.h"

namespace hotset::pipeline {

using kernels::kTile;
using model::from_group;
using model::Input;
using model::Rows;
using quant::Format;

namespace {
constexpr size_t kUnit = quant::kColBlock;  // neurons whose products one thread makes and quantizes
constexpr size_t kBlockCols = quant::kLaneGroups * quant::kGroup;

size_t tile_rows(size_t rows, size_t tile) { return std::min(kTile, rows - tile * kTile); }
}  // namespace

void SparseFfn::run_dense(size_t layer, const Input& in, ThreadPool& pool, Rows y) {
  in.q->shape(in.rows, desc_.hidden);
  pool.parallel_for(in.rows, 4, [&](size_t begin, size_t end, size_t) {
    for (size_t t = begin; t < end; ++t) {
      k_.quantize(in.f.row(t), desc_.hidden, in.q->tile(t / kTile), t % kTile);
      std::fill_n(y.row(t), desc_.hidden, 0.0f);
    }
  });
  const size_t hot = cache_.hot(layer), stride = file_.layout.stride;
  const uint8_t* block = cache_.hot_block(layer).data();
  // Pieces are the same whatever is hot, and so are the sums: the one on the border is put together.
  const size_t whole = hot == file_.neurons ? hot : hot - hot % kPieceNeurons;
  for (size_t first = 0; first < whole; first += kPieceNeurons) {
    const size_t count = std::min(kPieceNeurons, whole - first);
    dense_piece({layer, block + first * held_bytes_, held_bytes_, first, count}, in, pool, y);
  }
  for (size_t first = hot; first < file_.neurons;) {
    const auto read = stream_.next(layer, first);
    {
      const trace::Span span("check");
      pool.parallel_for(read.count, 32, [&](size_t begin, size_t end, size_t) {
        for (size_t i = begin; i < end; ++i)
          check_bundle(file_, layer, first + i, read.data + i * stride, file_.layout.bytes(),
                       file_.crc32c[layer][first + i]);
      });
    }
    const size_t before = first == hot ? hot - whole : 0;
    uint8_t* data = read.data - before * stride;
    for (size_t i = 0; i < before; ++i)
      std::memcpy(data + i * stride, block + (whole + i) * held_bytes_, held_bytes_);
    dense_piece({layer, data, stride, first - before, before + read.count}, in, pool, y);
    first += read.count;
  }
}

void SparseFfn::dense_piece(const Piece& p, const Input& in, ThreadPool& pool, Rows y) {
  hq_.shape(in.rows, p.count);
  {
    const trace::Span span("gate and up");
    pool.parallel_for((p.count + kUnit - 1) / kUnit, 1, [&](size_t begin, size_t end, size_t thread) {
      for (size_t u = begin; u < end; ++u)
        dense_unit(p, u * kUnit, std::min(kUnit, p.count - u * kUnit), in, thread_floats_[thread],
                   thread_bytes_[thread]);
    });
  }
  const trace::Span span("down");
  const size_t blocks = (desc_.hidden + kBlockCols - 1) / kBlockCols;
  pool.parallel_for(blocks, 1, [&](size_t begin, size_t end, size_t thread) {
    for (size_t b = begin; b < end; ++b)
      dense_down(p, b, in.rows, thread_floats_[thread], thread_bytes_[thread], y);
  });
}

// The vectors at `offset` in bundles [begin, begin + count) of the piece, as row blocks.
void SparseFfn::interleave(const Piece& p, size_t begin, size_t count, size_t offset, uint8_t* rows) const {
  const auto kernel =
      file_.layout.format == Format::q4_0 ? k_.interleave_neurons_q4_0 : k_.interleave_neurons_q8_0;
  const size_t row_bytes = quant::row_block_bytes(file_.layout.format, desc_.hidden);
  for (size_t r = 0; r < count; r += quant::kRowBlock, rows += row_bytes) {
    const size_t n = std::min(quant::kRowBlock, count - r);
    const uint8_t* vectors[quant::kRowBlock];
    for (size_t i = 0; i < n; ++i) vectors[i] = p.data + (begin + r + i) * p.stride + offset;
    kernel(vectors, n, desc_.hidden, rows);
  }
}

// Products of neurons [begin, begin + count) of the piece for all tokens, and their int8 copy.
void SparseFfn::dense_unit(const Piece& p, size_t begin, size_t count, const Input& in,
                           std::vector<float>& scratch, std::vector<uint8_t>& rows) {
  const auto matmul = file_.layout.format == Format::q4_0 ? k_.matmul_q4_0 : k_.matmul_q8_0;
  const size_t col_blocks = quant::col_blocks(desc_.hidden);
  const size_t row_bytes = quant::row_block_bytes(file_.layout.format, desc_.hidden);
  const size_t row_blocks = quant::row_blocks(count), width = row_blocks * quant::kRowBlock;
  rows.resize(std::max(rows.size(), 2 * row_blocks * row_bytes));
  scratch.resize(std::max(scratch.size(), kTile * width));
  const uint8_t *up_rows = rows.data(), *gate_rows = rows.data() + row_blocks * row_bytes;
  interleave(p, begin, count, 0, rows.data());
  if (gate_known_)
    gate_rows = predictor_->gate(p.layer)->data + (p.first + begin) / quant::kRowBlock * row_bytes;
  else if (desc_.gated)
    interleave(p, begin, count, file_.layout.gate_offset(), rows.data() + row_blocks * row_bytes);
  for (size_t i = 0; i * kTile < in.rows; ++i) {
    float* h = h_.row(i * kTile) + begin;
    const kernels::QTile x = in.q->tile(i);
    matmul(desc_.gated ? gate_rows : up_rows, row_blocks, col_blocks, x, h, static_cast<ptrdiff_t>(h_.ld));
    if (desc_.gated)
      matmul(up_rows, row_blocks, col_blocks, x, scratch.data(), static_cast<ptrdiff_t>(width));
    for (size_t t = 0; t < x.n; ++t) finish_products(p, begin, count, i, t, scratch.data() + t * width);
  }
}

void SparseFfn::finish_products(const Piece& p, size_t begin, size_t count, size_t tile, size_t t,
                                float* up) {
  float* product = h_.row(tile * kTile + t) + begin;
  const size_t neuron = p.first + begin;
  if (desc_.gated) {
    if (!file_.gate_bias.empty()) k_.add(file_.gate_bias[p.layer].data() + neuron, count, product);
    if (!file_.up_bias.empty()) k_.add(file_.up_bias[p.layer].data() + neuron, count, up);
  } else if (!file_.up_bias.empty()) {
    k_.add(file_.up_bias[p.layer].data() + neuron, count, product);
  }
  model::finish_products(k_, desc_, p.layer, neuron, count, up, product);
  if (record_->activations) record_->mark_all(tile * kTile + t, p.layer, neuron, product, count);
  k_.quantize(product, count, from_group(hq_.tile(tile), begin / quant::kGroup), t);
}

// y += down * products for 512 hidden columns.
void SparseFfn::dense_down(const Piece& p, size_t block, size_t n, std::vector<float>& scratch,
                           std::vector<uint8_t>& matrix, Rows y) {
  const auto transpose =
      file_.layout.format == Format::q4_0 ? k_.transpose_neurons_q4_0 : k_.transpose_neurons_q8_0;
  const size_t col_blocks = quant::col_blocks(p.count),
               row_bytes = col_blocks * quant::col_block_bytes(Format::q8_0);
  const size_t first = block * kBlockCols, used = std::min<size_t>(kBlockCols, desc_.hidden - first);
  const size_t row_blocks = quant::row_blocks(used), width = row_blocks * quant::kRowBlock;
  matrix.resize(std::max(matrix.size(), row_blocks * row_bytes));
  scratch.resize(std::max(scratch.size(), kTile * width));
  for (size_t c = 0; c < p.count; c += kUnit) {
    const uint8_t* vectors[kUnit];
    const size_t m = std::min(kUnit, p.count - c);
    for (size_t i = 0; i < m; ++i) vectors[i] = p.data + (c + i) * p.stride + file_.layout.down_offset();
    transpose(vectors, m, desc_.hidden, block,
              matrix.data() + c / kUnit * quant::col_block_bytes(Format::q8_0), row_bytes);
  }
  for (size_t i = 0; i * kTile < n; ++i) {
    k_.matmul_q8_0(matrix.data(), row_blocks, col_blocks, hq_.tile(i), scratch.data(),
                   static_cast<ptrdiff_t>(width));
    for (size_t t = 0; t < tile_rows(n, i); ++t)
      k_.add(scratch.data() + t * width, used, y.row(i * kTile + t) + first);
  }
}

}  // namespace hotset::pipeline
