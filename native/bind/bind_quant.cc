// Weight formats: packing, re-ordering and decoding whole matrices.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <tuple>

#include "base/cpu.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "bind/array.h"
#include "bind/bind.h"
#include "bind/format.h"
#include "quant/codec.h"
#include "quant/sketch.h"

namespace {

using namespace hotset;
using bind::format_of, bind::kAny, bind::view;
using quant::Format;

// One call of body(first_row, rows, row_block) for each row block, over all threads.
template <class Body>
void for_row_blocks(size_t rows, size_t threads, Body body) {
  const size_t blocks = quant::row_blocks(rows);
  if (threads == 0) threads = allowed_cpus().size();
  ThreadPool pool(std::min(threads, std::max<size_t>(blocks, 1)), false);
  pool.parallel_for(blocks, 4, [&](size_t begin, size_t end, size_t) {
    for (size_t b = begin; b < end; ++b)
      body(b * quant::kRowBlock, std::min(quant::kRowBlock, rows - b * quant::kRowBlock), b);
  });
}

std::tuple<double, double, double> encode(const std::string& fmt, nb::handle weights, nb::handle out,
                                          size_t threads) {
  const Format f = format_of(fmt);
  const auto w = view<const float>(weights, "weights", {kAny, kAny});
  const size_t rows = w.shape(0), cols = w.shape(1), block_bytes = quant::row_block_bytes(f, cols);
  const auto packed = view<uint8_t>(out, "out", {quant::packed_bytes(f, rows, cols)});
  nb::gil_scoped_release release;
  std::vector<quant::ErrorSums> sums(quant::row_blocks(rows));
  try {
    for_row_blocks(rows, threads, [&](size_t row, size_t n, size_t b) {
      sums[b] = quant::encode(f, &w.data[row * cols], n, cols, &packed.data[b * block_bytes]);
    });
  } catch (const InvalidWeight&) {
    quant::encode(f, w.data.data(), rows, cols,
                  packed.data.data());  // whole, so that the message counts all rows
    throw;
  }
  quant::ErrorSums total;  // in order of rows: the same for any number of threads
  for (const quant::ErrorSums& s : sums) {
    total.squared_error += s.squared_error;
    total.squared_weight += s.squared_weight;
    total.max_abs_error = std::max(total.max_abs_error, s.max_abs_error);
  }
  return {total.squared_error, total.squared_weight, total.max_abs_error};
}

// Bytes of a row of GGUF blocks: 32 weights each, or plain values.
size_t ggml_row_bytes(Format f, size_t cols) {
  if (quant::is_quantized(f) && cols % quant::kGroup != 0)
    throw InvalidArgument("cols is " + std::to_string(cols) +
                          ", wanted a multiple of 32: GGUF's blocks have 32 weights");
  switch (f) {
    case Format::f32:
      return cols * 4;
    case Format::f16:
    case Format::bf16:
      return cols * 2;
    case Format::q8_0:
      return cols / quant::kGroup * 34;
    case Format::q4_0:
      return cols / quant::kGroup * 18;
    case Format::q4_1:
      return cols / quant::kGroup * 20;
  }
  return 0;
}

void repack_ggml(const std::string& fmt, nb::handle src, size_t rows, size_t cols, nb::handle out,
                 size_t threads) {
  const Format f = format_of(fmt);
  bind::check_shape(rows, cols);
  const size_t row_bytes = ggml_row_bytes(f, cols), block_bytes = quant::row_block_bytes(f, cols);
  const auto blocks = view<const uint8_t>(src, "src", {rows * row_bytes});
  const auto packed = view<uint8_t>(out, "out", {quant::packed_bytes(f, rows, cols)});
  nb::gil_scoped_release release;
  try {
    for_row_blocks(rows, threads, [&](size_t row, size_t n, size_t b) {
      quant::repack_ggml(f, &blocks.data[row * row_bytes], n, cols, &packed.data[b * block_bytes]);
    });
  } catch (const InvalidWeight&) {
    quant::repack_ggml(f, blocks.data.data(), rows, cols, packed.data.data());
    throw;
  }
}

nb::object decode(const std::string& fmt, nb::handle packed, size_t rows, size_t cols) {
  const Format f = format_of(fmt);
  const auto p = bind::packed_matrix(f, packed, rows, cols);
  std::vector<float> out;
  {
    nb::gil_scoped_release release;
    out.resize(rows * cols);
    for (size_t r = 0; r < rows; ++r) quant::decode_row(f, p.data.data(), r, cols, &out[r * cols]);
  }
  return bind::to_numpy(std::move(out), {rows, cols});
}

void check_bits(unsigned bits) {
  if (bits != 2 && bits != 3) throw InvalidArgument("sketches have 2 or 3 bits, not " + std::to_string(bits));
}

void encode_sketch(unsigned bits, nb::handle weights, nb::handle importance, nb::handle out, size_t threads) {
  check_bits(bits);
  const auto w = view<const float>(weights, "weights", {kAny, kAny});
  const size_t rows = w.shape(0), cols = w.shape(1), vector = quant::sketch_vector_bytes(bits, cols);
  const auto counts = view<const float>(importance, "importance", {cols});
  const auto packed = view<uint8_t>(out, "out", {rows * vector});
  nb::gil_scoped_release release;
  for_row_blocks(rows, threads, [&](size_t row, size_t n, size_t) {
    quant::encode_sketch(bits, &w.data[row * cols], n, cols, counts.data.data(), &packed.data[row * vector]);
  });
}

nb::object decode_sketch(unsigned bits, nb::handle sketch, size_t rows, size_t cols) {
  check_bits(bits);
  bind::check_shape(rows, cols);
  const auto p = view<const uint8_t>(sketch, "sketch", {rows * quant::sketch_vector_bytes(bits, cols)});
  std::vector<float> out(rows * cols);
  quant::decode_sketch(bits, p.data.data(), rows, cols, out.data());
  return bind::to_numpy(std::move(out), {rows, cols});
}

}  // namespace

void bind_quant(nb::module_& m) {
  m.def(
      "packed_bytes",
      [](const std::string& fmt, size_t rows, size_t cols) {
        bind::check_shape(rows, cols);
        return quant::packed_bytes(format_of(fmt), rows, cols);
      },
      nb::arg("fmt"), nb::arg("rows"), nb::arg("cols"));
  m.def("encode", &encode, nb::arg("fmt"), nb::arg("weights"), nb::arg("out"), nb::arg("threads") = 0);
  m.def("repack_ggml", &repack_ggml, nb::arg("fmt"), nb::arg("src"), nb::arg("rows"), nb::arg("cols"),
        nb::arg("out"), nb::arg("threads") = 0);
  m.def(
      "sketch_bytes",
      [](unsigned bits, size_t rows, size_t cols) {
        check_bits(bits);
        bind::check_shape(rows, cols);
        return rows * quant::sketch_vector_bytes(bits, cols);
      },
      nb::arg("bits"), nb::arg("rows"), nb::arg("cols"));
  m.def("encode_sketch", &encode_sketch, nb::arg("bits"), nb::arg("weights"), nb::arg("importance"),
        nb::arg("out"), nb::arg("threads") = 0);
  m.def("decode_sketch", &decode_sketch, nb::arg("bits"), nb::arg("sketch"), nb::arg("rows"),
        nb::arg("cols"));
  m.def("decode", &decode, nb::arg("fmt"), nb::arg("packed"), nb::arg("rows"), nb::arg("cols"));
}
