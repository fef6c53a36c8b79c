// Vectors of neurons, NeuronFile and SparseOptions: what makes an Engine read its FFNs from the drive.
#include "bind/sparse.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "base/error.h"
#include "bind/bind.h"

namespace hotset::bind {
namespace {

using quant::Format;

Format neuron_format(const std::string& name) {
  const auto f = quant::parse_format(name);
  if (!f || (*f != Format::q4_0 && *f != Format::q8_0))
    throw InvalidArgument("neurons are stored as q4_0 or q8_0, got '" + name + "'");
  return *f;
}

using Floats = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Sums = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ConstBytes = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void check_bytes(size_t rows, size_t bytes, size_t want_rows, size_t want_bytes) {
  if (rows != want_rows || bytes != want_bytes)
    throw InvalidArgument("vectors have shape [" + std::to_string(rows) + ", " + std::to_string(bytes) +
                          "], wanted [" + std::to_string(want_rows) + ", " + std::to_string(want_bytes) +
                          "]");
}

nb::tuple encode_vectors(const std::string& fmt, const Floats& weights, const Bytes& out) {
  const Format f = neuron_format(fmt);
  const size_t n = weights.shape(0), cols = weights.shape(1);
  check_bytes(out.shape(0), out.shape(1), n, quant::vector_bytes(f, cols));
  quant::ErrorSums sums;
  {
    nb::gil_scoped_release release;
    for (size_t i = 0; i < n; ++i) {
      const auto one =
          quant::encode_vector(f, weights.data() + i * cols, cols, out.data() + i * out.shape(1));
      sums.squared_error += one.squared_error;
      sums.squared_weight += one.squared_weight;
      sums.max_abs_error = std::max(sums.max_abs_error, one.max_abs_error);
    }
  }
  return nb::make_tuple(sums.squared_error, sums.squared_weight, sums.max_abs_error);
}

nb::ndarray<nb::numpy, float> decode_vectors(const std::string& fmt, const ConstBytes& vectors, size_t cols) {
  const Format f = neuron_format(fmt);
  const size_t n = vectors.shape(0);
  check_bytes(n, vectors.shape(1), n, quant::vector_bytes(f, cols));
  auto* out = new std::vector<float>(n * cols);
  nb::capsule owner(out, [](void* p) noexcept { delete static_cast<std::vector<float>*>(p); });
  for (size_t i = 0; i < n; ++i)
    quant::decode_vector(f, vectors.data() + i * vectors.shape(1), cols, out->data() + i * cols);
  return nb::ndarray<nb::numpy, float>(out->data(), {n, cols}, owner);
}

// Not from Python numbers, which take ten times the memory.
std::vector<std::vector<uint32_t>> copied(const std::vector<Sums>& layers) {
  std::vector<std::vector<uint32_t>> out;
  for (const Sums& s : layers) out.emplace_back(s.data(), s.data() + s.size());
  return out;
}

void make_neuron_file(pipeline::NeuronFile* self, std::string path, const std::string& fmt, size_t hidden,
                      bool gated, size_t stride, size_t neurons, std::vector<uint64_t> offsets,
                      const std::vector<Sums>& crc32c, std::vector<std::vector<float>> gate_bias,
                      std::vector<std::vector<float>> up_bias) {
  new (self) pipeline::NeuronFile{std::move(path),   {neuron_format(fmt), hidden, gated, stride},
                                  neurons,           std::move(offsets),
                                  copied(crc32c),    std::move(gate_bias),
                                  std::move(up_bias)};
}

void make_sketch_file(pipeline::SketchFile* self, std::string path, unsigned bits,
                      const std::vector<std::array<uint64_t, 3>>& offsets) {
  new (self) pipeline::SketchFile{std::move(path), bits, {}};
  for (const auto& [gate, up, vectors] : offsets) self->layers.push_back({gate, up, vectors});
}

void make_gate_file(pipeline::GateFile* self, std::string path, const std::string& fmt, size_t hidden,
                    size_t neurons, size_t stride, std::vector<uint64_t> offsets,
                    const std::vector<Sums>& crc32c, const std::vector<Sums>& crc32c_rest) {
  new (self) pipeline::GateFile{std::move(path), neuron_format(fmt), hidden,         neurons,
                                stride,          std::move(offsets), copied(crc32c), copied(crc32c_rest)};
}

void make_options(SparseSetup* self, std::vector<uint32_t> hot, size_t cold_slots, std::string policy,
                  std::string predictor, std::vector<float> keep, std::vector<float> fetch,
                  std::vector<std::pair<model::TensorRef, model::TensorRef>> low_rank, bool relu,
                  std::string backend, size_t depth, bool draft_only, bool ahead,
                  const pipeline::SketchFile* sketch, bool overlap, size_t spill, size_t merged_bytes,
                  size_t gap_bytes, const pipeline::GateFile* gates) {
  if (predictor != "all" && predictor != "gate" && predictor != "read-gate" && predictor != "low-rank" &&
      predictor != "sketch")
    throw InvalidArgument("predictor is '" + predictor +
                          "', wanted all, gate, read-gate, low-rank or sketch");
  if ((predictor == "sketch") != (sketch != nullptr))
    throw InvalidArgument("predictor sketch and a sketch are given together or not at all");
  if ((predictor == "read-gate") != (gates != nullptr))
    throw InvalidArgument("predictor read-gate and a file of gates are given together or not at all");
  if (ahead && predictor != "low-rank")
    throw InvalidArgument("only predictor low-rank can look ahead, not " + predictor);
  if (ahead && !overlap)
    throw InvalidArgument("reads of the layer ahead are not waited for: overlap is needed");
  new (self) SparseSetup{{std::move(hot),
                          cold_slots,
                          std::move(policy),
                          std::move(keep),
                          std::move(fetch),
                          spill,
                          draft_only,
                          ahead,
                          overlap,
                          {std::move(backend), depth, true, merged_bytes, gap_bytes}},
                         std::move(predictor),
                         {},
                         relu};
  if (sketch) self->sketch = *sketch;
  if (gates) self->gates = *gates;
  for (auto& [down, up] : low_rank) self->low_rank.push_back({std::move(down), std::move(up)});
}

}  // namespace

std::unique_ptr<model::Ffn> make_sparse(pipeline::NeuronFile file, const SparseSetup& setup,
                                        const model::ModelDesc& desc, const kernels::Kernels& k,
                                        size_t max_rows) {
  std::unique_ptr<predictor::Predictor> predictor;
  if (setup.predictor == "gate") predictor = pipeline::load_gates(file, setup.options.io, k);
  if (setup.predictor == "read-gate") {
    pipeline::GateFile gates = setup.gates;
    if (gates.offset.size() != file.layers() || gates.neurons != file.neurons ||
        gates.hidden != file.layout.hidden || gates.format != file.layout.format)
      throw InvalidArgument("the gates are those of other neurons: " + std::to_string(gates.offset.size()) +
                            " layers of " + std::to_string(gates.neurons) + " with " +
                            std::to_string(gates.hidden) + " weights");
    file.crc32c_no_gate = std::move(gates.crc32c_rest);
    predictor = pipeline::make_gate_stream(std::move(gates), setup.options.io, k);
  }
  if (setup.predictor == "low-rank")
    predictor = pipeline::load_low_rank(setup.low_rank, setup.relu, max_rows, k);
  if (setup.predictor == "sketch")
    predictor = pipeline::load_sketch(setup.sketch, desc, setup.options.keep, k);
  return std::make_unique<pipeline::SparseFfn>(desc, std::move(file), setup.options, std::move(predictor), k,
                                               max_rows);
}

nb::dict sparse_stats(const pipeline::SparseFfn& ffn) {
  const auto c = ffn.counters();
  nb::dict d;
  d["layers"] = c.layers;
  d["candidates"] = c.candidates;
  d["active"] = c.active;
  d["missed"] = c.missed;
  d["skipped"] = c.skipped;
  d["reads"] = c.reads;
  d["bytes_read"] = c.bytes_read;
  d["stall_seconds"] = c.stall_seconds;
  d["evictions"] = ffn.cache().counters().evictions;
  d["bytes"] = ffn.bytes();
  d["cold_slots"] = ffn.cache().slots();
  d["cold_used"] = ffn.cache().used_slots();
  d["slot_bytes"] = ffn.slot_bytes();
  return d;
}

}  // namespace hotset::bind

void bind_sparse(nb::module_& m) {
  using namespace hotset::bind;
  m.def(
      "vector_bytes",
      [](const std::string& fmt, size_t cols) {
        return hotset::quant::vector_bytes(neuron_format(fmt), cols);
      },
      nb::arg("fmt"), nb::arg("cols"));
  m.def("encode_vectors", &encode_vectors, nb::arg("fmt"), nb::arg("weights"), nb::arg("out"));
  m.def("decode_vectors", &decode_vectors, nb::arg("fmt"), nb::arg("vectors"), nb::arg("cols"));
  nb::class_<hotset::pipeline::NeuronFile>(m, "NeuronFile")
      .def("__init__", &make_neuron_file, nb::arg("path"), nb::arg("fmt"), nb::arg("hidden"),
           nb::arg("gated"), nb::arg("stride"), nb::arg("neurons"), nb::arg("offsets"), nb::arg("crc32c"),
           nb::arg("gate_bias") = nb::list(), nb::arg("up_bias") = nb::list());
  nb::class_<hotset::pipeline::SketchFile>(m, "SketchFile")
      .def("__init__", &make_sketch_file, nb::arg("path"), nb::arg("bits"), nb::arg("offsets"));
  nb::class_<hotset::pipeline::GateFile>(m, "GateFile")
      .def("__init__", &make_gate_file, nb::arg("path"), nb::arg("fmt"), nb::arg("hidden"),
           nb::arg("neurons"), nb::arg("stride"), nb::arg("offsets"), nb::arg("crc32c"),
           nb::arg("crc32c_rest"));
  nb::class_<SparseSetup>(m, "SparseOptions")
      .def("__init__", &make_options, nb::arg("hot"), nb::arg("cold_slots"), nb::arg("policy") = "clock",
           nb::arg("predictor") = "all", nb::arg("keep") = nb::list(), nb::arg("fetch") = nb::list(),
           nb::arg("low_rank") = nb::list(), nb::arg("relu") = false, nb::arg("backend") = "auto",
           nb::arg("depth") = 64, nb::arg("draft_only") = false, nb::arg("ahead") = false,
           nb::arg("sketch") = nb::none(), nb::arg("overlap") = true, nb::arg("spill") = SIZE_MAX,
           nb::arg("merged_bytes") = hotset::io::ReaderOptions{}.merged_bytes,
           nb::arg("gap_bytes") = hotset::io::ReaderOptions{}.gap_bytes, nb::arg("gates") = nb::none());
}
