// The Sampler: parameters by keyword, one token per call.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unordered_map.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <unordered_map>

#include "base/trace.h"
#include "bind/array.h"
#include "bind/bind.h"
#include "kernels/kernels.h"
#include "model/engine.h"
#include "sampling/sampler.h"

namespace {

using namespace hotset;
using bind::kAny, bind::view;
using sampling::Sampler, sampling::SamplingParams;

void make_sampler(Sampler* self, uint64_t seed, float temperature, int32_t top_k, float top_p, float min_p,
                  float repetition_penalty, float presence_penalty, float frequency_penalty,
                  const std::optional<std::unordered_map<int32_t, float>>& logit_bias) {
  SamplingParams p{temperature,       top_k, top_p, min_p, repetition_penalty, presence_penalty,
                   frequency_penalty, {}};
  if (logit_bias) p.logit_bias.assign(logit_bias->begin(), logit_bias->end());
  new (self) Sampler(p, seed, kernels::select());
}

std::tuple<int32_t, float> sample(Sampler& s, std::span<const float> logits, nb::handle mask) {
  bind::View<const uint32_t> bits;
  if (!mask.is_none()) bits = view<const uint32_t>(mask, "mask", {(logits.size() + 31) / 32});
  nb::gil_scoped_release release;
  const trace::Span span("sample");
  float logprob;
  const int32_t token = s.sample(logits, mask.is_none() ? nullptr : bits.data.data(), &logprob);
  return {token, logprob};
}

}  // namespace

void bind_sampler(nb::module_& m) {
  nb::class_<Sampler>(m, "Sampler")
      .def("__init__", &make_sampler, nb::kw_only(), nb::arg("seed"), nb::arg("temperature") = 1.0f,
           nb::arg("top_k") = 0, nb::arg("top_p") = 1.0f, nb::arg("min_p") = 0.0f,
           nb::arg("repetition_penalty") = 1.0f, nb::arg("presence_penalty") = 0.0f,
           nb::arg("frequency_penalty") = 0.0f, nb::arg("logit_bias") = nb::none())
      .def("fork", [](const Sampler& s) { return Sampler(s); })
      .def(
          "accept_prompt",
          [](Sampler& s, nb::handle tokens) {
            s.accept_prompt(view<const int32_t>(tokens, "tokens", {kAny}).data);
          },
          nb::arg("tokens"))
      .def(
          "sample",
          [](Sampler& s, const model::Engine& engine, size_t row, nb::handle mask) {
            return sample(s, engine.logits(row), mask);
          },
          nb::arg("engine"), nb::arg("row"), nb::arg("mask") = nb::none())
      .def(
          "sample_logits",
          [](Sampler& s, nb::handle logits, nb::handle mask) {
            const auto x = view<const float>(logits, "logits", {kAny});
            return sample(s, x.data, mask);
          },
          nb::arg("logits"), nb::arg("mask") = nb::none());
}
