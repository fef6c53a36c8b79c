// TensorRef and Engine. Converts, releases the GIL, and lets Ctrl-C through between layers.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <numeric>
#include <optional>

#include "base/error.h"
#include "bind/bind.h"
#include "bind/descriptor.h"
#include "bind/sparse.h"
#include "model/engine.h"

namespace {

using hotset::InvalidArgument;
using hotset::model::Engine;
using hotset::model::EngineOptions;
using hotset::model::FileChecksums;
using hotset::model::TensorRef;
using hotset::pipeline::NeuronFile;
using hotset::pipeline::SparseFfn;

template <class T>
using Array = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class T>
std::span<const T> span(const Array<T>& a) {
  return {a.data(), a.shape(0)};
}

template <class T>
nb::ndarray<nb::numpy, T> own(std::vector<T> values, std::vector<size_t> shape) {
  auto* kept = new std::vector<T>(std::move(values));
  nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::ndarray<nb::numpy, T>(kept->data(), shape.size(), shape.data(), owner);
}

void make_tensor_ref(TensorRef* self, std::string role, int64_t layer, std::string path, uint64_t offset,
                     uint64_t bytes, const std::string& fmt, int64_t rows, int64_t cols) {
  const auto format = hotset::quant::parse_format(fmt);
  if (!format) throw InvalidArgument("no weight format '" + fmt + "'");
  new (self) TensorRef{std::move(role), layer, std::move(path), offset, bytes, *format, rows, cols};
}

void make_checksums(FileChecksums* self, std::string path, uint64_t block_bytes, uint64_t file_bytes,
                    std::vector<uint32_t> crc32c) {
  if (block_bytes == 0 || crc32c.size() != (file_bytes + block_bytes - 1) / block_bytes)
    throw InvalidArgument(path + ": " + std::to_string(crc32c.size()) + " checksums do not fit " +
                          std::to_string(file_bytes) + " bytes in blocks of " + std::to_string(block_bytes));
  new (self) FileChecksums{std::move(path), block_bytes, file_bytes, std::move(crc32c)};
}

void make_engine(Engine* self, const nb::dict& desc, const std::vector<TensorRef>& tensors,
                 const std::vector<FileChecksums>& checksums, size_t threads, const std::string& kv_type,
                 size_t kv_tokens, size_t max_step_tokens, const std::string& load,
                 const std::optional<std::string>& isa, bool pin, const NeuronFile* neurons,
                 const hotset::bind::SparseSetup* sparse, const std::optional<std::string>& embed_io) {
  using hotset::kernels::KvType;
  using hotset::model::LoadMode;
  if (kv_type != "f16" && kv_type != "int8")
    throw InvalidArgument("kv_type is '" + kv_type + "', wanted f16 or int8");
  if (load != "auto" && load != "read" && load != "mmap")
    throw InvalidArgument("load is '" + load + "', wanted auto, read or mmap");
  EngineOptions options{threads,
                        kv_type == "f16" ? KvType::f16 : KvType::int8,
                        kv_tokens,
                        max_step_tokens,
                        load == "mmap" ? LoadMode::mmap : LoadMode::read,
                        isa ? isa->c_str() : nullptr,
                        pin};
  if (embed_io) options.embed_io.emplace().backend = *embed_io;
  if (!neurons != !sparse) throw InvalidArgument("neurons and sparse are given together or not at all");
  hotset::model::FfnFactory make_ffn;
  if (neurons)
    make_ffn = [&](const auto& d, const auto& k, size_t rows) {
      return hotset::bind::make_sparse(*neurons, *sparse, d, k, rows);
    };
  auto model = hotset::bind::model_desc(desc);
  nb::gil_scoped_release release;
  new (self) Engine(std::move(model), tensors, checksums, options, make_ffn);
}

// Runs in the middle of a step, without the GIL.
void check_signals() {
  nb::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

size_t step(Engine& e, const Array<int32_t>& seqs, const Array<int32_t>& counts, const Array<int32_t>& tokens,
            const Array<uint8_t>& want, const std::optional<Array<int64_t>>& rope_lengths, bool draft) {
  const auto lengths = rope_lengths ? span(*rope_lengths) : std::span<const int64_t>{};
  nb::gil_scoped_release release;
  return e.step(span(seqs), span(counts), span(tokens), span(want), lengths, check_signals, draft);
}

nb::ndarray<nb::numpy, const float> logits(nb::handle_t<Engine> self) {
  const Engine& e = nb::cast<const Engine&>(self);
  const size_t shape[] = {e.logit_rows(), static_cast<size_t>(e.desc().vocab)};
  const int64_t strides[] = {static_cast<int64_t>(e.logits().ld), 1};
  return nb::ndarray<nb::numpy, const float>(e.logits().data, 2, shape, self, strides);
}

nb::ndarray<nb::numpy, float> token_logprobs(Engine& e, const Array<int32_t>& targets) {
  std::vector<float> out(targets.shape(0));
  {
    nb::gil_scoped_release release;
    e.token_logprobs(span(targets), out);
  }
  const size_t n = out.size();
  return own(std::move(out), {n});
}

nb::tuple top_logprobs(const Engine& e, size_t row, size_t n) {
  const auto x = e.logits(row);
  n = std::min(n, x.size());
  std::vector<int32_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + n, order.end(),
                    [&](int32_t a, int32_t b) { return x[a] != x[b] ? x[a] > x[b] : a < b; });
  order.resize(n);
  float max, lse;
  e.kernels().logsumexp(x.data(), x.size(), &max, &lse);
  std::vector<float> values(n);
  for (size_t i = 0; i < n; ++i) values[i] = x[order[i]] - lse;
  return nb::make_tuple(own(std::move(order), {n}), own(std::move(values), {n}));
}

void set_ffn_floor(Engine& e, size_t layer, float input, float gate,
                   const std::optional<Array<float>>& product) {
  std::vector<float> products;
  if (product) products.assign(product->data(), product->data() + product->shape(0));
  e.set_ffn_floor(layer, {input, gate, std::move(products)});
}

size_t shrink_cold(Engine& e, size_t slots) {
  auto* ffn = dynamic_cast<SparseFfn*>(e.ffn());
  return ffn ? ffn->shrink_cold(slots) : 0;
}

nb::tuple take_record(Engine& e) {
  auto& r = e.record();
  const size_t rows = r.rows;
  auto active = own(std::move(r.active), {r.activations ? rows : 0, r.layers, r.row_bytes()});
  auto inputs = own(std::move(r.input), {r.inputs ? rows : 0, r.layers, r.hidden});
  r.clear();
  return nb::make_tuple(active, inputs);
}

nb::dict stats(const Engine& e) {
  const auto s = e.stats();
  nb::dict d;
  d["weight_bytes"] = s.weight_bytes;
  d["kv_bytes_used"] = s.kv_bytes_used;
  d["kv_bytes_reserved"] = s.kv_bytes_reserved;
  d["scratch_bytes"] = s.scratch_bytes;
  d["bytes_per_token"] = s.bytes_per_token;
  d["load_seconds"] = s.load_seconds;
  return d;
}

}  // namespace

void bind_engine(nb::module_& m) {
  nb::class_<TensorRef>(m, "TensorRef")
      .def("__init__", &make_tensor_ref, nb::arg("role"), nb::arg("layer"), nb::arg("path"),
           nb::arg("offset"), nb::arg("bytes"), nb::arg("fmt"), nb::arg("rows"), nb::arg("cols"));

  nb::class_<FileChecksums>(m, "FileChecksums")
      .def("__init__", &make_checksums, nb::arg("path"), nb::arg("block_bytes"), nb::arg("file_bytes"),
           nb::arg("crc32c"));

  nb::class_<Engine>(m, "Engine")
      .def("__init__", &make_engine, nb::arg("desc"), nb::arg("tensors"), nb::kw_only(),
           nb::arg("checksums") = nb::make_tuple(), nb::arg("threads") = 0, nb::arg("kv_type") = "f16",
           nb::arg("kv_tokens") = 4096, nb::arg("max_step_tokens") = 512, nb::arg("load") = "auto",
           nb::arg("isa") = nb::none(), nb::arg("pin") = true, nb::arg("neurons") = nb::none(),
           nb::arg("sparse") = nb::none(), nb::arg("embed_io") = nb::none())
      .def("sequence_new", [](Engine& e) { return e.kv().create(); })
      .def(
          "sequence_fork", [](Engine& e, int32_t seq) { return e.kv().fork(seq); }, nb::arg("seq"))
      .def(
          "sequence_free", [](Engine& e, int32_t seq) { e.kv().release(seq); }, nb::arg("seq"))
      .def(
          "sequence_truncate", [](Engine& e, int32_t seq, size_t n) { e.kv().truncate(seq, n); },
          nb::arg("seq"), nb::arg("tokens"))
      .def(
          "sequence_length", [](Engine& e, int32_t seq) { return e.kv().length(seq); }, nb::arg("seq"))
      .def("kv_free_tokens", [](Engine& e) { return e.kv().free_tokens(); })
      .def("step", &step, nb::arg("seqs"), nb::arg("counts"), nb::arg("tokens"), nb::arg("want"),
           nb::arg("rope_lengths") = nb::none(), nb::arg("draft") = false)
      .def("logits", &logits)
      .def("token_logprobs", &token_logprobs, nb::arg("targets"))
      .def("top_logprobs", &top_logprobs, nb::arg("row"), nb::arg("n"))
      .def("cancel", &Engine::cancel)
      .def("set_threads", &Engine::set_threads, nb::arg("threads"), nb::call_guard<nb::gil_scoped_release>())
      .def("set_ffn_floor", &set_ffn_floor, nb::arg("layer"), nb::kw_only(), nb::arg("input") = 0.0f,
           nb::arg("gate") = 0.0f, nb::arg("product") = nb::none())
      .def("shrink_cold", &shrink_cold, nb::arg("slots"), nb::call_guard<nb::gil_scoped_release>())
      .def("warm", &Engine::warm, nb::call_guard<nb::gil_scoped_release>())
      .def(
          "record",
          [](Engine& e, bool activations, bool inputs) {
            e.record().clear();
            e.record().activations = activations;
            e.record().inputs = inputs;
          },
          nb::arg("activations"), nb::arg("inputs") = false)
      .def("take_record", &take_record)
      .def_prop_ro("stats", &stats)
      .def_prop_ro("sparse_stats",
                   [](const Engine& e) {
                     const auto* ffn = dynamic_cast<const SparseFfn*>(e.ffn());
                     return ffn ? hotset::bind::sparse_stats(*ffn) : nb::dict();
                   })
      .def_prop_ro("threads", &Engine::threads)
      .def_prop_ro("isa", [](const Engine& e) { return e.kernels().isa; });
}
