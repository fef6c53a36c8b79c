// Attention over one KV head, for tests: fills pages with kv_store, attends to them in tiles of 16 queries.
#include <nanobind/stl/string.h>

#include <algorithm>
#include <limits>

#include "base/memory.h"
#include "bind/array.h"
#include "bind/bind.h"
#include "kernels/kernels.h"

namespace {

using namespace hotset;
using bind::kAny, bind::view;
using kernels::Kernels, kernels::KvType, kernels::kPage, kernels::kTile;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// The pages of one KV head, filled with k and v [tokens, hd]; `width` is hd rounded up to 16.
struct Pages {
  Buffer memory;
  std::vector<const uint8_t*> page;

  Pages(const Kernels& kern, KvType type, std::span<const float> k, std::span<const float> v, size_t hd,
        size_t width)
      : memory(round_up(k.size() / hd, kPage) / kPage * kernels::kv_page_bytes(type, width)) {
    std::vector<float> key(width), value(width);
    for (size_t t = 0; t < k.size() / hd; ++t) {
      uint8_t* at = memory.data() + t / kPage * kernels::kv_page_bytes(type, width);
      if (t % kPage == 0) page.push_back(at);
      std::copy_n(&k[t * hd], hd, key.data());
      std::copy_n(&v[t * hd], hd, value.data());
      kern.kv_store(type, key.data(), value.data(), width, t % kPage, at);
    }
  }
};

// Up to kTile queries; out [n][hd].
void attend_tile(const Kernels& kern, KvType type, const Pages& pages, const float* q, const int64_t* lo,
                 const int64_t* hi, size_t n, size_t hd, float* out) {
  const size_t width = round_up(hd, 16);
  std::vector<float> query(n * width), o(n * width), l(n), m(n, -std::numeric_limits<float>::infinity());
  for (size_t i = 0; i < n; ++i) std::copy_n(q + i * hd, hd, &query[i * width]);
  kern.attend(type, pages.page.data(), pages.page.size(), 0,
              {query.data(), lo, hi, m.data(), l.data(), o.data(), n, width});
  for (size_t i = 0; i < n; ++i)
    for (size_t d = 0; d < hd; ++d) out[i * hd + d] = l[i] > 0 ? o[i * width + d] / l[i] : 0.0f;
}

nb::object attend(const std::string& isa, const std::string& kv, nb::handle q, nb::handle k, nb::handle v,
                  nb::handle lo, nb::handle hi) {
  const Kernels& kern = kernels::select(isa.c_str());
  if (kv != "f16" && kv != "int8") throw InvalidArgument("no KV type '" + kv + "'; wanted f16 or int8");
  const KvType type = kv == "f16" ? KvType::f16 : KvType::int8;
  const auto query = view<const float>(q, "q", {kAny, kAny}),
             keys = view<const float>(k, "k", {kAny, query.shape(1)});
  const auto values = view<const float>(v, "v", {keys.shape(0), query.shape(1)});
  const size_t n = query.shape(0), hd = query.shape(1);
  const auto first = view<const int64_t>(lo, "lo", {n}), last = view<const int64_t>(hi, "hi", {n});
  const auto tokens = static_cast<int64_t>(keys.shape(0));
  if (hd == 0 || hd > kernels::kMaxHeadDim)
    throw InvalidArgument("q has heads of size " + std::to_string(hd) + "; wanted 1 to " +
                          std::to_string(kernels::kMaxHeadDim));
  for (size_t i = 0; i < n; ++i)
    if (first.data[i] < 0 || last.data[i] > tokens)
      throw InvalidArgument("lo and hi of query " + std::to_string(i) + " must lie within the " +
                            std::to_string(tokens) + " tokens of k");
  std::vector<float> out(n * hd);
  {
    nb::gil_scoped_release release;
    const Pages pages(kern, type, keys.data, values.data, hd, round_up(hd, 16));
    for (size_t i = 0; i < n; i += kTile)
      attend_tile(kern, type, pages, &query.data[i * hd], &first.data[i], &last.data[i],
                  std::min(kTile, n - i), hd, &out[i * hd]);
  }
  return bind::to_numpy(std::move(out), {n, hd});
}

}  // namespace

void bind_attend(nb::module_& m) {
  m.def("attend", &attend, nb::arg("isa"), nb::arg("kv"), nb::arg("q"), nb::arg("k"), nb::arg("v"),
        nb::arg("lo"), nb::arg("hi"));
}
