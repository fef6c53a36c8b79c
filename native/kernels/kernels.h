// The table of compute kernels. One table per ISA; all tables compute the same functions.
//
// Goals: (1) a result never depends on how work is cut: each output element is summed in one fixed
// order, whatever the number of tokens in the tile, rows in the call or threads, so prefill, decode and
// batches agree bit for bit within one ISA; (2) no allocation, no exception, no global state;
// (3) an ISA is one folder under arch/, its files compiled with that ISA's flags and including nothing
// but intrinsics, this header and quant/format.h (an inline std function compiled for AVX-512 must not
// win at link time on an older CPU).
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/format.h"

namespace hotset::kernels {

inline constexpr size_t kTile = 16;  // tokens per activation tile
inline constexpr size_t kPage = 64;  // tokens per KV page

// Up to kTile tokens of activations, int8 in groups of 32 with one scale per token and group (as GGUF's
// Q8_0). n = number of tokens in the tile; also the stride, so one token is contiguous.
struct QTile {
  int8_t* q;   // [groups][n][32]   x ~ d * q, q in -127..127
  float* d;    // [groups][n]       absmax / 127
  int32_t* s;  // [groups][n]       sum of q over the group
  size_t n;    // 1..kTile
};

// One token's activations in lane order, for vectors of single neurons (quant/neuron.h): in a block of 512
// columns lane g holds group g. Lanes past the last group are 0. Token t of a tile of `stride` tokens is at
// [block][t]: blocks of several tokens lie together.
struct LaneVector {
  int8_t* q;          // [blocks][stride][8][16][4]   byte [j][g][b] = column g*32 + 4*j + b of the block
  float* d;           // [blocks][stride][16]
  int32_t* s;         // [blocks][stride][16]
  size_t cols;        // blocks = ceil(cols / 512)
  size_t stride = 1;  // tokens of the tile

  LaneVector token(size_t t) const { return {q + t * 512, d + t * 16, s + t * 16, cols, stride}; }
};

enum class Activation : uint8_t { none, silu, gelu, gelu_tanh, relu, relu2, shifted_relu };

enum class KvType : uint8_t { f16, int8 };

// One page of one layer and one KV head: keys, then values. hd = head size padded to a multiple of 16.
//   f16   K f16 [hd][kPage], V f16 [kPage][hd]
//   int8  bf16 k_scale[key_groups(hd)][kPage], bf16 v_scale[kPage], K i8 [hd / 2][kPage][2], V i8 [kPage /
//   2][hd][2]
//         scales: absmax / 127, rounded up, of 32 columns of a token's key and of its whole value: keys have
//         columns that are far larger than others, values have not
inline constexpr size_t kKeyGroup = 32, kMaxHeadDim = 1024;
constexpr size_t key_groups(size_t hd) { return (hd + kKeyGroup - 1) / kKeyGroup; }
constexpr size_t kv_scale_bytes(size_t hd) { return (key_groups(hd) + 1) * kPage * 2; }
constexpr size_t kv_page_bytes(KvType t, size_t hd) {
  return t == KvType::f16 ? hd * kPage * 4 : hd * kPage * 2 + kv_scale_bytes(hd);
}

// Running softmax state of up to kTile queries that read the same KV head (the heads of a GQA group, or
// several tokens of a prompt). Online softmax; source: Milakov & Gimelshein, arXiv:1805.02867.
struct AttendState {
  const float* q;                 // [n][hd], already multiplied by the softmax scale; padding is 0
  const int64_t* lo;              // [n] first position attended (inclusive): sliding window
  const int64_t* hi;              // [n] last position attended (exclusive): causal limit
  float* m;                       // [n] running maximum, start at -inf
  float* l;                       // [n] running sum of exp(score - m), start at 0
  float* o;                       // [n][hd] running weighted sum of V, start at 0; divide by l at the end
  size_t n;                       // 1..kTile
  size_t hd;                      // multiple of 16, at most kMaxHeadDim
  const uint8_t* next = nullptr;  // page that will be read after this call, if known: its head is fetched
};

// Neurons whose down vectors are added together: those among kSumWindow neighbours in store order that count.
// What is added next is fetched meanwhile.
inline constexpr size_t kSumWindow = 512;
struct SumWindow {
  const uint8_t* const* vectors;
  const float* a;
  size_t n;  // at most kSumWindow; 0 only fetches
  const uint8_t* const* next = nullptr;
  size_t n_next = 0;
};

inline constexpr size_t kMaximaBlock = 64, kWeightsBlock = 1024;  // of logits

struct Kernels {
  const char* isa;  // "scalar", "avx2", "avx512", "avx512vnni", "neon", "neon_dotprod", "neon_i8mm"

  // out[t * ldo + r] = dot(row r of w, token t) for all rows of `row_blocks` packed row blocks (16 *
  // row_blocks floats per token are written). `w` starts at a row block; rows of `col_blocks` column blocks.
  // int32 inside a group: |sum| <= 32 * 255 * 127 * 2, no overflow; f32 FMA across groups in column order.
  using MatmulQ = void (*)(const uint8_t* w, size_t row_blocks, size_t col_blocks, const QTile& x, float* out,
                           ptrdiff_t ldo);
  // x is f32 [n][ldx], readable (zero padded) to col_blocks * 64 columns. f32 FMA in column order.
  using MatmulF = void (*)(const uint8_t* w, size_t row_blocks, size_t col_blocks, const float* x,
                           ptrdiff_t ldx, size_t n, float* out, ptrdiff_t ldo);
  MatmulQ matmul_q4_0, matmul_q4_1, matmul_q8_0;
  MatmulF matmul_f16, matmul_bf16, matmul_f32;

  // Quantizes x[cols] into token t of the tile; groups from ceil(cols/32) to 2*ceil(cols/64) become 0. A
  // group with a NaN or infinity gets q = 0 and d = NaN, so every product shows it.
  void (*quantize)(const float* x, size_t cols, const QTile& tile, size_t t);

  // y = x / sqrt(mean(x^2) + eps) * w      (w may be null = 1)
  void (*rms_norm)(const float* x, const float* w, float eps, size_t n, float* y);
  // y = (x - mean) / sqrt(var + eps) * w + b   (w, b may be null)
  void (*layer_norm)(const float* x, const float* w, const float* b, float eps, size_t n, float* y);
  // y += x
  void (*add)(const float* x, size_t n, float* y);
  // y = f(x - threshold if shifted_relu) ... in place; shifted_relu(x) = x if x > threshold else 0 (FATReLU)
  void (*activate)(Activation f, float threshold, size_t n, float* x);
  // gate = f(gate) * h(up), in place in gate
  void (*glu)(Activation f, float f_threshold, Activation h, float h_threshold, const float* up, size_t n,
              float* gate);
  // x = what |f(x + noise e)| is about, for normal e of variance 1, noise >= 0: above 0 also where f(x) is 0,
  // the less so the farther x is from where f is not. As f for silu and gelu, whose zeros are few.
  void (*expected)(Activation f, float threshold, const float* noise, size_t n, float* x);
  // Rotates x[0..2*half) in place, halves paired as Hugging Face does: (x[i], x[i+half]).
  void (*rope)(const float* cos, const float* sin, size_t half, float* x);

  // Writes one token's key and value (f32 [hd]) into slot `slot` of a page.
  void (*kv_store)(KvType t, const float* k, const float* v, size_t hd, size_t slot, uint8_t* page);
  // Attends to pages[0..n_pages); pages[i] holds positions (first_page + i) * kPage onwards.
  void (*attend)(KvType t, const uint8_t* const* pages, size_t n_pages, int64_t first_page,
                 const AttendState& a);

  // As quantize(), in lane order.
  void (*quantize_lanes)(const float* x, const LaneVector& v);
  // out[i * tokens + t] = dot(vectors[i], token t from x on): rows of gate or up, each of x.cols weights.
  using DotNeurons = void (*)(const uint8_t* const* vectors, size_t n, const LaneVector& x, size_t tokens,
                              float* out);
  DotNeurons dot_neurons_q4_0, dot_neurons_q8_0;
  // out[k] = dot(vectors[i], token tokens[k] from x on) for k in [first[i], first[i + 1]), first[0] = 0.
  using DotPairs = void (*)(const uint8_t* const* vectors, size_t n, const LaneVector& x,
                            const uint32_t* first, const uint16_t* tokens, float* out);
  DotPairs dot_pairs_q4_0, dot_pairs_q8_0;
  // Adds sums over i of a[i] * vectors[i][c] to running sums [ceil(cols / 32) * 32] in lane order, which
  // start at 0, for the columns of blocks [begin, end) of 512: columns of down. A window's weights are
  // rounded to 1/16383 of the largest one in a group, so a result depends on how neurons are cut into
  // windows, but not on neurons whose weight is 0 nor on begin and end. order_sums() then puts blocks into
  // column order in place, and zeros behind `cols`.
  using AddNeurons = void (*)(const SumWindow& window, size_t cols, size_t begin, size_t end, float* sums);
  AddNeurons add_neurons_q4_0, add_neurons_q8_0;
  void (*order_sums)(size_t cols, size_t begin, size_t end, float* sums);
  // Rows of gate or up of n <= 16 neurons as one packed row block (quant/format.h) of the same format, no
  // value changed.
  using InterleaveNeurons = void (*)(const uint8_t* const* vectors, size_t n, size_t cols,
                                     uint8_t* row_block);
  InterleaveNeurons interleave_neurons_q4_0, interleave_neurons_q8_0;

  // max and log(sum(exp(x))) of n logits.
  void (*logsumexp)(const float* x, size_t n, float* max, float* lse);
  // maxima[b] = largest of logits [64 b, 64 (b + 1)), ceil(n / 64) of them; false if any logit is not finite.
  bool (*block_maxima)(const float* x, size_t n, float* maxima);
  // p[i] = exp((x[i] - max) * scale) for x <= max; sums[b] = sum of p [1024 b, 1024 (b + 1)). Unlike all else
  // here the same bits on every ISA, so that a seed gives the same text everywhere.
  void (*softmax_weights)(const float* x, size_t n, float max, float scale, float* p, float* sums);

  // As dot_neurons(), of vectors of a sketch (quant/sketch.h).
  DotNeurons dot_sketch_2, dot_sketch_3;
};

struct IsaInfo {
  const char* name;
  const char* description;
  bool compiled, supported;  // in this build; by this CPU
  const Kernels* kernels;    // null unless compiled
};

// All known ISAs, best last. Thread-safe.
const IsaInfo* isa_list(size_t* count);
// Best supported one, or the one named by `name` / HOTSET_ISA. Throws UnsupportedIsa naming the choices.
const Kernels& select(const char* name = nullptr);

}  // namespace hotset::kernels
