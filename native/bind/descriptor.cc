#include "bind/descriptor.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <set>
#include <utility>

#include "base/error.h"

namespace nb = nanobind;

namespace hotset::bind {
namespace {

// Takes fields out of a dict by name and remembers which, so that a misspelt one cannot be ignored.
class Fields {
 public:
  Fields(nb::dict d, std::string what) : d_(std::move(d)), what_(std::move(what)) {}

  template <class T>
  void operator()(const char* name, T& out) {
    seen_.insert(name);
    if (!d_.contains(name)) throw InvalidArgument(what_ + ": field '" + name + "' is missing");
    try {
      out = nb::cast<T>(d_[name]);
    } catch (const nb::cast_error&) {
      throw InvalidArgument(what_ + ": field '" + name + "' has the wrong type, got " +
                            nb::repr(nb::handle(d_[name])).c_str());
    }
  }
  template <class T, size_t N>
  void choice(const char* name, T& out, const std::pair<const char*, T> (&choices)[N]) {
    std::string s;
    (*this)(name, s);
    for (const auto& [text, value] : choices)
      if (s == text) return void(out = value);
    throw InvalidArgument(what_ + ": field '" + name + "' is '" + s + "', which is not a choice");
  }
  template <class Each>
  void list(const char* name, Each each) {
    seen_.insert(name);
    if (!d_.contains(name)) throw InvalidArgument(what_ + ": field '" + name + "' is missing");
    for (nb::handle item : d_[name]) each(Fields(nb::cast<nb::dict>(item), what_ + "." + name));
  }
  void end() const {
    for (auto [key, value] : d_)
      if (!seen_.contains(nb::cast<std::string>(key)))
        throw InvalidArgument(what_ + ": there is no field '" + nb::cast<std::string>(key) + "'");
  }

 private:
  nb::dict d_;
  std::string what_;
  std::set<std::string> seen_;
};

model::RopeDesc rope_desc(Fields f) {
  model::RopeDesc r;
  f("inv_freq", r.inv_freq);
  f("attention_factor", r.attention_factor);
  f("dynamic_factor", r.dynamic_factor);
  f("dynamic_base", r.dynamic_base);
  f("original_context", r.original_context);
  f.end();
  return r;
}

model::LayerDesc layer_desc(Fields f) {
  model::LayerDesc l;
  f("window", l.window);
  f("rope", l.rope);
  f.end();
  return l;
}

}  // namespace

kernels::Activation activation(const std::string& name) {
  using kernels::Activation;
  static constexpr std::pair<const char*, Activation> kNames[] = {{"none", Activation::none},
                                                                  {"silu", Activation::silu},
                                                                  {"gelu", Activation::gelu},
                                                                  {"gelu_tanh", Activation::gelu_tanh},
                                                                  {"relu", Activation::relu},
                                                                  {"relu2", Activation::relu2},
                                                                  {"shifted_relu", Activation::shifted_relu}};
  std::string all;
  for (const auto& [text, value] : kNames) {
    if (name == text) return value;
    all += std::string(all.empty() ? "" : ", ") + text;
  }
  throw InvalidArgument("no activation '" + name + "', choose one of " + all);
}

model::ModelDesc model_desc(const nb::dict& d) {
  Fields f(d, "model");
  model::ModelDesc m;
  f("hidden", m.hidden), f("vocab", m.vocab), f("ffn", m.ffn);
  f("heads", m.heads), f("kv_heads", m.kv_heads), f("head_dim", m.head_dim), f("context", m.context);
  f.choice("norm", m.norm, {{"rms", model::NormKind::rms}, {"layer", model::NormKind::layer}});
  f("norm_eps", m.norm_eps), f("norm_offset", m.norm_offset);
  f.choice(
      "qk_norm", m.qk_norm,
      {{"none", model::QkNorm::none}, {"per_head", model::QkNorm::per_head}, {"full", model::QkNorm::full}});
  f("attention_scale", m.attention_scale);
  f("embedding_scale", m.embedding_scale), f("logit_scale", m.logit_scale);
  f("logit_softcap", m.logit_softcap), f("residual_scale", m.residual_scale);
  f("position_offset", m.position_offset);
  f("parallel", m.parallel), f("gated", m.gated);
  std::string act;
  f("act_gate", act), m.act_gate = activation(act);
  f("act_up", act), m.act_up = activation(act);
  f("gate_threshold", m.gate_threshold), f("up_threshold", m.up_threshold);
  f.list("ropes", [&](Fields r) { m.ropes.push_back(rope_desc(std::move(r))); });
  f.list("layers", [&](Fields l) { m.layers.push_back(layer_desc(std::move(l))); });
  f.end();
  return m;
}

}  // namespace hotset::bind
