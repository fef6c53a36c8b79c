#include "model/weights.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <set>
#include <thread>
#include <tuple>

#include "base/crc32c.h"
#include "base/error.h"
#include "io/reader.h"

namespace hotset::model {
namespace {

constexpr uint64_t kNear = 1 << 20;  // bytes between two tensors that are read with them

struct MatrixSlot {
  const char* role;
  Matrix LayerWeights::* slot;
};
// What a vector's length must be.
enum class Length : uint8_t { hidden, ffn, q, kv, q_norm, k_norm };
struct VectorSlot {
  const char* role;
  Vector LayerWeights::* slot;
  Length length;
  bool norm;
};

constexpr MatrixSlot kMatrices[] = {{"q", &LayerWeights::q},      {"k", &LayerWeights::k},
                                    {"v", &LayerWeights::v},      {"o", &LayerWeights::o},
                                    {"up", &LayerWeights::up},    {"gate", &LayerWeights::gate},
                                    {"down", &LayerWeights::down}};

constexpr VectorSlot kVectors[] = {{"attn_norm", &LayerWeights::attn_norm, Length::hidden, true},
                                   {"attn_norm_bias", &LayerWeights::attn_norm_bias, Length::hidden, false},
                                   {"attn_post_norm", &LayerWeights::attn_post_norm, Length::hidden, true},
                                   {"ffn_norm", &LayerWeights::ffn_norm, Length::hidden, true},
                                   {"ffn_norm_bias", &LayerWeights::ffn_norm_bias, Length::hidden, false},
                                   {"ffn_post_norm", &LayerWeights::ffn_post_norm, Length::hidden, true},
                                   {"q_norm", &LayerWeights::q_norm, Length::q_norm, true},
                                   {"k_norm", &LayerWeights::k_norm, Length::k_norm, true},
                                   {"q_bias", &LayerWeights::q_bias, Length::q, false},
                                   {"k_bias", &LayerWeights::k_bias, Length::kv, false},
                                   {"v_bias", &LayerWeights::v_bias, Length::kv, false},
                                   {"o_bias", &LayerWeights::o_bias, Length::hidden, false},
                                   {"gate_bias", &LayerWeights::gate_bias, Length::ffn, false},
                                   {"up_bias", &LayerWeights::up_bias, Length::ffn, false},
                                   {"down_bias", &LayerWeights::down_bias, Length::hidden, false}};

int64_t length_of(const ModelDesc& d, Length length) {
  const int64_t q = d.heads * d.head_dim, kv = d.kv_heads * d.head_dim;
  switch (length) {
    case Length::hidden:
      return d.hidden;
    case Length::ffn:
      return d.ffn;
    case Length::q:
      return q;
    case Length::kv:
      return kv;
    case Length::q_norm:
      return d.qk_norm == QkNorm::full ? q : d.head_dim;
    case Length::k_norm:
      return d.qk_norm == QkNorm::full ? kv : d.head_dim;
  }
  return 0;
}

std::string label(const std::string& role, int64_t layer) {
  return layer < 0 ? role : role + " of layer " + std::to_string(layer);
}

[[noreturn]] void wrong_shape(const std::string& what, size_t rows, size_t cols, size_t want_rows,
                              size_t want_cols) {
  throw InvalidArgument("weight '" + what + "' has shape [" + std::to_string(rows) + ", " +
                        std::to_string(cols) + "], wanted [" + std::to_string(want_rows) + ", " +
                        std::to_string(want_cols) + "]");
}

void check_shape(const std::string& what, const Matrix& m, int64_t rows, int64_t cols, bool held = true) {
  if (held ? !m : m.rows == 0) throw InvalidArgument("weight '" + what + "' is missing");
  if (m.rows != static_cast<size_t>(rows) || m.cols != static_cast<size_t>(cols))
    wrong_shape(what, m.rows, m.cols, rows, cols);
}

void check_length(const std::string& what, const Vector& v, int64_t n, bool required) {
  if (v.empty() && !required) return;
  if (v.empty()) throw InvalidArgument("weight '" + what + "' is missing");
  if (v.size() != static_cast<size_t>(n))
    throw InvalidArgument("weight '" + what + "' has " + std::to_string(v.size()) + " values, wanted " +
                          std::to_string(n));
}

void check_layer(const ModelDesc& d, const LayerWeights& w, int64_t i, bool with_ffn) {
  const int64_t q = d.heads * d.head_dim, kv = d.kv_heads * d.head_dim;
  auto name = [&](const char* role) { return label(role, i); };
  check_shape(name("q"), w.q, q, d.hidden);
  check_shape(name("k"), w.k, kv, d.hidden);
  check_shape(name("v"), w.v, kv, d.hidden);
  check_shape(name("o"), w.o, d.hidden, q);
  if (with_ffn) {
    check_shape(name("up"), w.up, d.ffn, d.hidden);
    check_shape(name("down"), w.down, d.hidden, d.ffn);
    if (d.gated) check_shape(name("gate"), w.gate, d.ffn, d.hidden);
    if (!d.gated && w.gate)
      throw InvalidArgument("weight '" + name("gate") + "' does not belong to a plain FFN");
  } else if (w.up || w.down || w.gate) {
    throw InvalidArgument("weight '" +
                          name(w.up     ? "up"
                               : w.down ? "down"
                                        : "gate") +
                          "' is given, but the FFN's neurons are in a file of their own");
  }
  if (d.parallel) check_length(name("attn_norm"), w.attn_norm, d.hidden, true);
  const bool qk = d.qk_norm != QkNorm::none;
  if (!qk && !(w.q_norm.empty() && w.k_norm.empty()))
    throw InvalidArgument("weight '" + name("q_norm") + "' given, but the model has no norm on q and k");
  for (const VectorSlot& slot : kVectors) {
    const bool is_qk = slot.length == Length::q_norm || slot.length == Length::k_norm;
    check_length(name(slot.role), w.*slot.slot, length_of(d, slot.length), is_qk && qk);
  }
}

Vector read_vector(const ModelDesc& desc, const TensorRef& t, const uint8_t* data, bool norm) {
  if (t.format != quant::Format::f32)
    throw InvalidArgument("vector '" + label(t.role, t.layer) + "' has format " +
                          std::string(quant::name(t.format)) + ", wanted f32");
  Vector v(t.rows);
  std::memcpy(v.data(), data, v.size() * sizeof(float));
  for (float& x : v) {
    if (!std::isfinite(x))
      throw InvalidWeight("vector '" + label(t.role, t.layer) + "' holds a value that is not finite");
    if (norm) x += desc.norm_offset;
  }
  return v;
}

uint64_t pad_to(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

uint64_t tensor_bytes(const TensorRef& t) {
  return t.cols == 0 ? t.rows * sizeof(float) : quant::packed_bytes(t.format, t.rows, t.cols);
}

}  // namespace

// Two threads: one CRC runs at about 10 GB/s, a page-cached file is read at twice that.
void verify(const FileChecksums& sums, size_t first, std::span<const uint8_t> data) {
  const size_t blocks = pad_to(data.size(), sums.block_bytes) / sums.block_bytes;
  if (first + blocks > sums.crc32c.size())
    throw InvalidWeight(sums.path + ": " + std::to_string(sums.crc32c.size()) + " checksums, wanted " +
                        std::to_string(first + blocks));
  std::atomic<size_t> bad = SIZE_MAX;
  auto check = [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      const auto block =
          data.subspan(i * sums.block_bytes, std::min(sums.block_bytes, data.size() - i * sums.block_bytes));
      if (crc32c(block.data(), block.size()) != sums.crc32c[first + i]) bad = std::min(bad.load(), i);
    }
  };
  std::jthread half([&] { check(0, blocks / 2); });
  check(blocks / 2, blocks);
  half.join();
  if (bad == SIZE_MAX) return;
  throw InvalidWeight(
      sums.path + ": the " + std::to_string(sums.block_bytes) + " bytes at offset " +
      std::to_string((first + bad) * sums.block_bytes) +
      " do not have the checksum of the manifest; the file is damaged: copy it again or convert again");
}

Weights::Weights(const ModelDesc& desc, const std::vector<TensorRef>& tensors,
                 const std::vector<FileChecksums>& checksums, LoadMode mode, Parts parts)
    : layers(desc.layers.size()) {
  std::set<std::pair<std::string, int64_t>> seen;
  std::vector<const TensorRef*> held;
  for (const TensorRef& t : tensors) {
    const std::string what = label(t.role, t.layer);
    if (!seen.emplace(t.role, t.layer).second) throw InvalidArgument("weight '" + what + "' is given twice");
    if (t.rows <= 0 || t.cols < 0 || t.rows > (int64_t{1} << 31) || t.cols > (int64_t{1} << 31))
      throw InvalidArgument("weight '" + what + "' has a shape that is out of range");
    if (t.layer >= static_cast<int64_t>(layers.size()))
      throw InvalidArgument("weight '" + what + "' is beyond the last layer, " +
                            std::to_string(layers.size() - 1));
    if (t.bytes != tensor_bytes(t))
      throw InvalidArgument("weight '" + what + "' is " + std::to_string(t.bytes) +
                            " bytes, its shape and format need " + std::to_string(tensor_bytes(t)));
    if (t.role == "embed" && !parts.embed) continue;
    held.push_back(&t);
    bytes_ += t.bytes;
  }
  find_sources(std::move(held));
  for (Source& s : sources_) {
    const auto sums =
        std::find_if(checksums.begin(), checksums.end(), [&](const auto& c) { return c.path == s.path; });
    mode == LoadMode::mmap ? map(s) : read(s, sums == checksums.end() ? nullptr : &*sums);
  }
  for (const TensorRef& t : tensors) place(desc, t);

  check_shape("embed", embed, desc.vocab, desc.hidden, parts.embed);
  if (!head && !parts.embed)
    throw InvalidArgument(
        "an embedding that is the head, too, is read whole for every token: it must be in memory");
  if (!head) head = embed;
  check_shape("head", head, desc.vocab, desc.hidden);
  check_length("head_bias", head_bias, desc.vocab, false);
  check_length("final_norm", final_norm, desc.hidden, false);
  check_length("final_norm_bias", final_norm_bias, desc.hidden, false);
  if (desc.position_offset >= 0)
    check_shape("position", position, desc.context + desc.position_offset, desc.hidden);
  for (size_t i = 0; i < layers.size(); ++i) check_layer(desc, layers[i], static_cast<int64_t>(i), parts.ffn);
}

// One read (or mapping) for tensors that lie next to each other, as a store's do.
void Weights::find_sources(std::vector<const TensorRef*> tensors) {
  std::ranges::sort(tensors, {}, [](const TensorRef* t) { return std::tie(t->path, t->offset); });
  for (const TensorRef* t : tensors) {
    Source* last = sources_.empty() ? nullptr : &sources_.back();
    if (!last || last->path != t->path || t->offset > last->end + kNear)
      last = &sources_.emplace_back(Source{t->path, t->offset, t->offset, nullptr});
    last->end = std::max(last->end, t->offset + t->bytes);
  }
}

void Weights::map(Source& s) {
  mappings_.emplace_back(s.path.c_str());
  const auto file = mappings_.back().bytes();
  if (s.end > file.size())
    throw IoError(s.path + ": file has " + std::to_string(file.size()) + " bytes, its weights end at " +
                  std::to_string(s.end) + "; convert the model again");
  s.data = file.data() + s.begin;
}

// Whole checksum blocks are read, so a little more than the weights.
void Weights::read(Source& s, const FileChecksums* sums) {
  if (sums) {
    s.begin = s.begin / sums->block_bytes * sums->block_bytes;
    s.end = std::min(sums->file_bytes, pad_to(s.end, sums->block_bytes));
  }
  buffers_.emplace_back(s.end - s.begin);
  const std::span<uint8_t> dst{buffers_.back().data(), s.end - s.begin};
  io::read_all(s.path, s.begin, dst);
  s.data = dst.data();
  if (sums) verify(*sums, s.begin / sums->block_bytes, dst);
}

const uint8_t* Weights::address(const TensorRef& t) const {
  for (const Source& s : sources_)
    if (s.path == t.path && s.begin <= t.offset && t.offset + t.bytes <= s.end)
      return s.data + (t.offset - s.begin);
  return nullptr;  // it stays in its file
}

void Weights::place(const ModelDesc& desc, const TensorRef& t) {
  const uint8_t* data = address(t);
  const std::string what = label(t.role, t.layer);
  const Matrix matrix{data, t.format, static_cast<size_t>(t.rows), static_cast<size_t>(t.cols)};
  auto put_matrix = [&](Matrix& slot) {
    if (t.cols == 0) throw InvalidArgument("weight '" + what + "' is a vector, wanted a matrix");
    slot = matrix;
  };
  auto put_vector = [&](Vector& slot, bool norm) {
    if (t.cols != 0) throw InvalidArgument("weight '" + what + "' is a matrix, wanted a vector");
    slot = read_vector(desc, t, data, norm);
  };
  if (t.layer < 0) {
    if (t.role == "embed") return put_matrix(embed);
    if (t.role == "position") return put_matrix(position);
    if (t.role == "head") return put_matrix(head);
    if (t.role == "final_norm") return put_vector(final_norm, true);
    if (t.role == "final_norm_bias") return put_vector(final_norm_bias, false);
    if (t.role == "head_bias") return put_vector(head_bias, false);
  } else {
    for (const auto& slot : kMatrices)
      if (t.role == slot.role) return put_matrix(layers[t.layer].*slot.slot);
    for (const auto& slot : kVectors)
      if (t.role == slot.role) return put_vector(layers[t.layer].*slot.slot, slot.norm);
  }
  throw InvalidArgument("no weight has the role '" + what + "'");
}

size_t Weights::bytes_per_token() const {
  size_t total = head.bytes();
  if (embed.data != head.data) total += embed.row_block_bytes() / quant::kRowBlock;
  for (const LayerWeights& l : layers)
    for (const auto& slot : kMatrices) total += (l.*slot.slot) ? (l.*slot.slot).bytes() : 0;
  return total;
}

void Weights::touch() const {
  volatile uint8_t sink = 0;
  for (const Source& s : sources_)
    for (uint64_t i = 0; i < s.end - s.begin; i += 4096) sink = sink + s.data[i];
}

}  // namespace hotset::model
