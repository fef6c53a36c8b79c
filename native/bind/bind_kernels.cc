// Single kernels by ISA and name, for tests and micro benchmarks: one thread, memory laid out as the engine
// does.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <tuple>

#include "bind/bind.h"
#include "bind/format.h"
#include "kernels/kernels.h"

namespace {

using namespace hotset;
using bind::kAny, bind::View, bind::view, bind::to_numpy;
using kernels::Activation, kernels::Kernels, kernels::kTile;
using quant::Format;

const Kernels& isa_of(const std::string& name) { return kernels::select(name.c_str()); }

Activation activation_of(const std::string& name) {
  constexpr const char* kNames[] = {"none", "silu", "gelu", "gelu_tanh", "relu", "relu2", "shifted_relu"};
  const auto at = std::find(std::begin(kNames), std::end(kNames), name);
  if (at == std::end(kNames)) throw InvalidArgument("no activation '" + name + "'");
  return static_cast<Activation>(at - std::begin(kNames));
}

// Memory of one tile of quantized activations.
struct TileBuffer {
  std::vector<int8_t> q;
  std::vector<float> d;
  std::vector<int32_t> s;
  kernels::QTile tile;

  TileBuffer(size_t n, size_t cols) {
    const size_t groups = quant::col_blocks(cols) * 2;
    q.resize(groups * n * quant::kGroup), d.resize(groups * n), s.resize(groups * n);
    tile = {q.data(), d.data(), s.data(), n};
  }
};

void matmul_tile(const Kernels& k, Format f, const uint8_t* w, size_t rows, size_t cols, const float* x,
                 size_t n, float* out) {
  const size_t rb = quant::row_blocks(rows), cb = quant::col_blocks(cols), width = cb * quant::kColBlock;
  const auto ldo = static_cast<ptrdiff_t>(rb * quant::kRowBlock);
  if (quant::is_quantized(f)) {
    TileBuffer t(n, cols);
    for (size_t i = 0; i < n; ++i) k.quantize(x + i * cols, cols, t.tile, i);
    (f == Format::q4_0   ? k.matmul_q4_0
     : f == Format::q4_1 ? k.matmul_q4_1
                         : k.matmul_q8_0)(w, rb, cb, t.tile, out, ldo);
    return;
  }
  std::vector<float> padded(n * width);
  for (size_t i = 0; i < n; ++i) std::copy_n(x + i * cols, cols, &padded[i * width]);
  (f == Format::f16    ? k.matmul_f16
   : f == Format::bf16 ? k.matmul_bf16
                       : k.matmul_f32)(w, rb, cb, padded.data(), static_cast<ptrdiff_t>(width), n, out, ldo);
}

nb::object matmul(const std::string& isa, const std::string& fmt, nb::handle packed, size_t rows, size_t cols,
                  nb::handle x) {
  const Kernels& k = isa_of(isa);
  const Format f = bind::format_of(fmt);
  const auto w = bind::packed_matrix(f, packed, rows, cols);
  const auto in = view<const float>(x, "x", {kAny, cols});
  const size_t tokens = in.shape(0), ldo = quant::row_blocks(rows) * quant::kRowBlock;
  std::vector<float> out(tokens * rows);
  {
    nb::gil_scoped_release release;
    std::vector<float> tile(kTile * ldo);
    for (size_t t = 0; t < tokens; t += kTile) {
      const size_t n = std::min(kTile, tokens - t);
      matmul_tile(k, f, w.data.data(), rows, cols, &in.data[t * cols], n, tile.data());
      for (size_t i = 0; i < n; ++i) std::copy_n(&tile[i * ldo], rows, &out[(t + i) * rows]);
    }
  }
  return to_numpy(std::move(out), {tokens, rows});
}

nb::tuple quantize_q8(const std::string& isa, nb::handle x) {
  const auto in = view<const float>(x, "x", {kAny});
  const size_t groups = (in.data.size() + quant::kGroup - 1) / quant::kGroup;
  TileBuffer t(1, in.data.size());
  isa_of(isa).quantize(in.data.data(), in.data.size(), t.tile, 0);
  t.q.resize(groups * quant::kGroup), t.d.resize(groups);
  return nb::make_tuple(to_numpy(std::move(t.q), {groups * quant::kGroup}),
                        to_numpy(std::move(t.d), {groups}));
}

nb::object norm(const std::string& isa, const std::string& kind, nb::handle x, nb::handle w, nb::handle b,
                float eps) {
  const Kernels& k = isa_of(isa);
  const auto in = view<const float>(x, "x", {kAny});
  const size_t n = in.data.size();
  const auto optional = [n](nb::handle h, const char* name) {
    return h.is_none() ? View<const float>{} : view<const float>(h, name, {n});
  };
  const auto weight = optional(w, "w"), bias = optional(b, "b");
  if (kind != "rms" && kind != "layer") throw InvalidArgument("no norm '" + kind + "'; wanted rms or layer");
  if (kind == "rms" && !b.is_none()) throw InvalidArgument("an RMS norm has no bias; pass None for b");
  std::vector<float> out(n);
  if (kind == "rms")
    k.rms_norm(in.data.data(), weight.data.data(), eps, n, out.data());
  else
    k.layer_norm(in.data.data(), weight.data.data(), bias.data.data(), eps, n, out.data());
  return to_numpy(std::move(out), {n});
}

std::vector<float> copy(const View<const float>& v) { return {v.data.begin(), v.data.end()}; }

nb::object activate(const std::string& isa, const std::string& name, float threshold, nb::handle x) {
  std::vector<float> out = copy(view<const float>(x, "x", {kAny}));
  isa_of(isa).activate(activation_of(name), threshold, out.size(), out.data());
  return to_numpy(std::move(out), {out.size()});
}

nb::object glu(const std::string& isa, const std::string& gate_act, const std::string& up_act,
               nb::handle gate, nb::handle up, float gate_threshold, float up_threshold) {
  std::vector<float> out = copy(view<const float>(gate, "gate", {kAny}));
  const auto u = view<const float>(up, "up", {out.size()});
  isa_of(isa).glu(activation_of(gate_act), gate_threshold, activation_of(up_act), up_threshold, u.data.data(),
                  out.size(), out.data());
  return to_numpy(std::move(out), {out.size()});
}

nb::object expected(const std::string& isa, const std::string& name, float threshold, nb::handle noise,
                    nb::handle x) {
  std::vector<float> out = copy(view<const float>(x, "x", {kAny}));
  const auto s = view<const float>(noise, "noise", {out.size()});
  isa_of(isa).expected(activation_of(name), threshold, s.data.data(), out.size(), out.data());
  return to_numpy(std::move(out), {out.size()});
}

nb::object rope(const std::string& isa, nb::handle cos, nb::handle sin, nb::handle x) {
  const auto c = view<const float>(cos, "cos", {kAny});
  const size_t half = c.data.size();
  const auto s = view<const float>(sin, "sin", {half});
  std::vector<float> out = copy(view<const float>(x, "x", {2 * half}));
  isa_of(isa).rope(c.data.data(), s.data.data(), half, out.data());
  return to_numpy(std::move(out), {2 * half});
}

std::tuple<float, float> logsumexp(const std::string& isa, nb::handle x) {
  const auto in = view<const float>(x, "x", {kAny});
  if (in.data.empty()) throw InvalidArgument("x is empty");
  float max, lse;
  isa_of(isa).logsumexp(in.data.data(), in.data.size(), &max, &lse);
  return {max, lse};
}

std::tuple<nb::object, bool> block_maxima(const std::string& isa, nb::handle x) {
  const auto in = view<const float>(x, "x", {kAny});
  std::vector<float> maxima((in.data.size() + kernels::kMaximaBlock - 1) / kernels::kMaximaBlock);
  const bool finite = isa_of(isa).block_maxima(in.data.data(), in.data.size(), maxima.data());
  const size_t blocks = maxima.size();
  return {to_numpy(std::move(maxima), {blocks}), finite};
}

std::tuple<nb::object, nb::object> softmax_weights(const std::string& isa, nb::handle x, float max,
                                                   float scale) {
  const auto in = view<const float>(x, "x", {kAny});
  const size_t n = in.data.size(), blocks = (n + kernels::kWeightsBlock - 1) / kernels::kWeightsBlock;
  std::vector<float> p(n), sums(blocks);
  isa_of(isa).softmax_weights(in.data.data(), n, max, scale, p.data(), sums.data());
  return {to_numpy(std::move(p), {n}), to_numpy(std::move(sums), {blocks})};
}

}  // namespace

void bind_kernels(nb::module_& m) {
  bind_attend(m);
  m.def("matmul", &matmul, nb::arg("isa"), nb::arg("fmt"), nb::arg("packed"), nb::arg("rows"),
        nb::arg("cols"), nb::arg("x"));
  m.def("quantize_q8", &quantize_q8, nb::arg("isa"), nb::arg("x"));
  m.def("norm", &norm, nb::arg("isa"), nb::arg("kind"), nb::arg("x"), nb::arg("w").none(),
        nb::arg("b").none(), nb::arg("eps"));
  m.def("activate", &activate, nb::arg("isa"), nb::arg("name"), nb::arg("threshold"), nb::arg("x"));
  m.def("glu", &glu, nb::arg("isa"), nb::arg("gate_act"), nb::arg("up_act"), nb::arg("gate"), nb::arg("up"),
        nb::arg("gate_threshold") = 0.0f, nb::arg("up_threshold") = 0.0f);
  m.def("expected", &expected, nb::arg("isa"), nb::arg("name"), nb::arg("threshold"), nb::arg("noise"),
        nb::arg("x"));
  m.def("rope", &rope, nb::arg("isa"), nb::arg("cos"), nb::arg("sin"), nb::arg("x"));
  m.def("logsumexp", &logsumexp, nb::arg("isa"), nb::arg("x"));
  m.def("block_maxima", &block_maxima, nb::arg("isa"), nb::arg("x"));
  m.def("softmax_weights", &softmax_weights, nb::arg("isa"), nb::arg("x"), nb::arg("max"), nb::arg("scale"));
}
