#include "model/linear.h"

#include <algorithm>

#include "base/trace.h"

namespace hotset::model {

using kernels::kTile;
using kernels::QTile;
using quant::Format;
using quant::kRowBlock;

namespace {

kernels::Kernels::MatmulQ quantized_kernel(const kernels::Kernels& k, Format f) {
  return f == Format::q4_0 ? k.matmul_q4_0 : f == Format::q4_1 ? k.matmul_q4_1 : k.matmul_q8_0;
}

kernels::Kernels::MatmulF float_kernel(const kernels::Kernels& k, Format f) {
  return f == Format::f16 ? k.matmul_f16 : f == Format::bf16 ? k.matmul_bf16 : k.matmul_f32;
}

// Some 2 us of one core's stream from memory: to take less from another thread costs more than it gains.
constexpr size_t kLeastChunkBytes = size_t{64} << 10;
size_t tile_rows(const Input& in, size_t tile) { return std::min(kTile, in.rows - tile * kTile); }

}  // namespace

QuantizedRows::QuantizedRows(size_t max_rows, size_t max_cols) {
  const size_t groups = pad_to(max_cols, quant::kColBlock) / quant::kGroup;
  const size_t rows = pad_to(max_rows, kTile);
  memory_ = Buffer(rows * groups * (quant::kGroup + sizeof(float) + sizeof(int32_t)));
  q_ = reinterpret_cast<int8_t*>(memory_.data());
  d_ = reinterpret_cast<float*>(q_ + rows * groups * quant::kGroup);
  s_ = reinterpret_cast<int32_t*>(d_ + rows * groups);
}

size_t chunk_blocks(size_t blocks, BlockSize block, size_t rows, size_t threads, size_t l2) {
  const size_t each = (blocks + threads - 1) / threads;
  if (rows > kTile) {
    const size_t bytes = block.bytes + block.products * kTile * sizeof(float);
    const size_t most = threads == 1 ? each : each / 8;
    return std::clamp<size_t>((l2 ? l2 : size_t{1} << 20) / 4 / bytes, 1, std::max<size_t>(1, most));
  }
  const size_t chunks = std::clamp<size_t>(each * block.bytes / kLeastChunkBytes, 1, 8);
  return (each + chunks - 1) / chunks;
}

void Linear::prepare(const Input& in, size_t cols, std::initializer_list<const Matrix*> readers,
                     const Share& share) {
  const bool needed = std::any_of(readers.begin(), readers.end(),
                                  [](const Matrix* m) { return *m && quant::is_quantized(m->format); });
  if (!needed) return;
  if (!share.alone()) in.q->shape(in.rows, cols);
  each_row(in.rows, share, pool_,
           [&](size_t t) { k_.quantize(in.f.row(t), cols, in.q->tile(t / kTile), t % kTile); });
}

void Linear::tile(const Matrix& w, size_t block, size_t blocks, const Input& in, size_t tile, float* out,
                  ptrdiff_t ldo) const {
  const uint8_t* data = w.data + block * w.row_block_bytes();
  if (quant::is_quantized(w.format)) {
    quantized_kernel(k_, w.format)(data, blocks, w.col_blocks(), in.q->tile(tile), out, ldo);
  } else {
    float_kernel(k_, w.format)(data, blocks, w.col_blocks(), in.f.row(tile * kTile),
                               static_cast<ptrdiff_t>(in.f.ld), tile_rows(in, tile), out, ldo);
  }
}

void Linear::run_blocks(const Input& in, const Product& p, size_t begin, size_t end,
                        const Share& share) const {
  const size_t first = begin * kRowBlock, last = std::min(end * kRowBlock, p.w->rows);
  for (size_t i = share.first; i * kTile < share.end_row(in.rows); ++i) {
    // What is added to another matrix goes through the share's first tile, which stays in the cache.
    float* out = p.out.row((p.residual ? share.first : i) * kTile) + first;
    tile(*p.w, begin, end - begin, in, i, out, static_cast<ptrdiff_t>(p.out.ld));
    if (p.bias->empty() && !p.residual) continue;
    for (size_t t = 0; t < tile_rows(in, i); ++t) {
      float* y = out + t * p.out.ld;
      if (!p.bias->empty()) k_.add(p.bias->data() + first, last - first, y);
      if (p.residual) k_.add(y, last - first, p.residual->row(i * kTile + t) + first);
    }
  }
}

// Row blocks [begin, end) of the products, counted through all of them.
void Linear::run_products(const Input& in, std::span<const Product> products, size_t begin, size_t end,
                          const Share& share) const {
  size_t base = 0;
  for (const Product& p : products) {
    const size_t n = p.w->row_blocks(), from = std::max(begin, base), to = std::min(end, base + n);
    if (from < to) run_blocks(in, p, from - base, to - base, share);
    base += n;
  }
}

void Linear::run(const Input& in, std::span<const Product> products, const Share& share) {
  const trace::Span span("matmul");
  size_t total = 0;
  BlockSize block{0, kRowBlock};
  for (const Product& p : products) {
    total += p.w->row_blocks();
    block.bytes = std::max(block.bytes, p.w->row_block_bytes());
  }
  const auto alone = [&](const Share& mine) {
    const size_t chunk = chunk_blocks(total, block, in.rows, 1);
    for (size_t begin = 0; begin < total; begin += chunk)
      run_products(in, products, begin, std::min(total, begin + chunk), mine);
  };
  if (share.alone()) return alone(share);
  if (const RowParts parts(in.rows, pool_); parts.split()) return parts.each(pool_, alone);
  pool_.parallel_for(total, chunk_blocks(total, block, in.rows, pool_.size()),
                     [&](size_t begin, size_t end, size_t) { run_products(in, products, begin, end, {}); });
}

}  // namespace hotset::model
