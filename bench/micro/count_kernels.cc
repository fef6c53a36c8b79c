// Runs one kernel a given number of times on fixed input, to be counted by callgrind (bench/instructions.py):
// what two runs of different length differ by is the kernel alone.
//
//   count_kernels KERNEL REPEATS      count_kernels --list      count_kernels --compiler
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "model/lane_rows.h"
#include "quant/codec.h"
#include "quant/sketch.h"

namespace {

using namespace hotset;
using kernels::Kernels;
using quant::Format;

constexpr size_t kHidden = 4096, kNeurons = 32, kRows = 16, kBlocks = kHidden / 512;

struct Work {
  const Kernels& k = kernels::select();
  std::vector<float> x = std::vector<float>(kHidden * kRows, 0.3f);
  std::vector<float> y = std::vector<float>(kHidden * kRows);
  std::vector<uint8_t> weights =
      std::vector<uint8_t>(kNeurons * quant::vector_bytes(Format::q8_0, kHidden), 0x21);
  std::vector<int8_t> q = std::vector<int8_t>(kHidden * kRows);
  std::vector<float> d = std::vector<float>(kHidden / 32 * kRows);
  std::vector<int32_t> s = std::vector<int32_t>(kHidden / 32 * kRows);
  std::vector<uint32_t> first;
  std::vector<uint16_t> tokens;
  model::LaneRows lanes{kRows, kHidden};

  Work() {
    for (size_t t = 0; t < kRows; ++t) {
      k.quantize_lanes(x.data(), lanes.row(t));
      k.quantize(x.data(), kHidden, tile(kRows), t);
    }
    for (size_t i = 0; i <= kNeurons; ++i) first.push_back(static_cast<uint32_t>(4 * i));
    for (size_t i = 0; i < 4 * kNeurons; ++i) tokens.push_back(static_cast<uint16_t>(i * 5 % kRows));
  }
  kernels::QTile tile(size_t n) { return {q.data(), d.data(), s.data(), n}; }
  std::vector<const uint8_t*> vectors(Format f) const {
    std::vector<const uint8_t*> out;
    for (size_t i = 0; i < kNeurons; ++i) out.push_back(weights.data() + i * quant::vector_bytes(f, kHidden));
    return out;
  }
};

void add_format(std::map<std::string, std::function<void(Work&)>>& all, Format f) {
  const std::string name(quant::name(f));
  const bool four = f == Format::q4_0;
  for (const size_t rows : {size_t{1}, kRows}) {
    const std::string n = name + "_" + std::to_string(rows);
    all["dot_neurons_" + n] = [=](Work& w) {
      (four ? w.k.dot_neurons_q4_0 : w.k.dot_neurons_q8_0)(w.vectors(f).data(), kNeurons, w.lanes.row(0),
                                                           rows, w.y.data());
    };
    all["matmul_" + n] = [=](Work& w) {
      (four ? w.k.matmul_q4_0 : w.k.matmul_q8_0)(w.weights.data(), 2, kHidden / quant::kColBlock,
                                                 w.tile(rows), w.y.data(), 32);
    };
  }
  all["dot_pairs_" + name] = [=](Work& w) {
    (four ? w.k.dot_pairs_q4_0 : w.k.dot_pairs_q8_0)(w.vectors(f).data(), kNeurons, w.lanes.row(0),
                                                     w.first.data(), w.tokens.data(), w.y.data());
  };
  all["add_neurons_" + name] = [=](Work& w) {
    (four ? w.k.add_neurons_q4_0 : w.k.add_neurons_q8_0)({w.vectors(f).data(), w.x.data(), kNeurons}, kHidden, 0,
                                                         kBlocks, w.y.data());
  };
}

void add_sketch(std::map<std::string, std::function<void(Work&)>>& all, unsigned bits) {
  for (const size_t rows : {size_t{1}, kRows}) {
    all["dot_sketch_" + std::to_string(bits) + "_" + std::to_string(rows)] = [=](Work& w) {
      std::vector<const uint8_t*> vectors;
      for (size_t i = 0; i < kNeurons; ++i)
        vectors.push_back(w.weights.data() + i * quant::sketch_vector_bytes(bits, kHidden));
      (bits == 2 ? w.k.dot_sketch_2 : w.k.dot_sketch_3)(vectors.data(), kNeurons, w.lanes.row(0), rows,
                                                        w.y.data());
    };
  }
}

// Two pages, whose numbers need not be any in particular, and four queries of a group.
void add_attention(std::map<std::string, std::function<void(Work&)>>& all, kernels::KvType type,
                   const std::string& name) {
  constexpr size_t hd = 128, queries = 4;
  const size_t bytes = kernels::kv_page_bytes(type, hd);
  all["kv_store_" + name] = [=](Work& w) {
    w.k.kv_store(type, w.x.data(), w.x.data(), hd, 5, reinterpret_cast<uint8_t*>(w.y.data()));
  };
  all["attend_" + name] = [=](Work& w) {
    const std::vector<uint8_t> memory(2 * bytes, 0x21);
    const uint8_t* pages[] = {memory.data(), memory.data() + bytes};
    const std::vector<int64_t> lo(queries, 0), hi(queries, 2 * int64_t{kernels::kPage});
    std::vector<float> m(queries, -1e30f), l(queries);
    w.k.attend(type, pages, 2, 0,
               {w.x.data(), lo.data(), hi.data(), m.data(), l.data(), w.y.data(), queries, hd});
  };
}

std::map<std::string, std::function<void(Work&)>> kernels_by_name() {
  std::map<std::string, std::function<void(Work&)>> all;
  add_format(all, Format::q4_0);
  add_format(all, Format::q8_0);
  add_sketch(all, 2);
  add_sketch(all, 3);
  add_attention(all, kernels::KvType::f16, "f16");
  add_attention(all, kernels::KvType::int8, "int8");
  all["quantize"] = [](Work& w) { w.k.quantize(w.x.data(), kHidden, w.tile(1), 0); };
  all["quantize_lanes"] = [](Work& w) { w.k.quantize_lanes(w.x.data(), w.lanes.row(0)); };
  all["order_sums"] = [](Work& w) { w.k.order_sums(kHidden, 0, kBlocks, w.y.data()); };
  all["rms_norm"] = [](Work& w) { w.k.rms_norm(w.x.data(), w.x.data(), 1e-5f, kHidden, w.y.data()); };
  all["glu_silu"] = [](Work& w) {
    w.k.glu(kernels::Activation::silu, 0, kernels::Activation::none, 0, w.x.data(), kHidden, w.y.data());
  };
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  const auto all = kernels_by_name();
  if (argc == 2 && std::string(argv[1]) == "--list") {
    for (const auto& [name, run] : all) std::printf("%s\n", name.c_str());
    return 0;
  }
  if (argc == 2 && std::string(argv[1]) == "--compiler") {
    std::printf("%s\n", __VERSION__);
    return 0;
  }
  const auto chosen = argc == 3 ? all.find(argv[1]) : all.end();
  if (chosen == all.end()) {
    std::fprintf(stderr, "usage: count_kernels KERNEL REPEATS | --list | --compiler\n");
    return 2;
  }
  Work work;
  for (int i = std::atoi(argv[2]); i > 0; --i) chosen->second(work);
}
