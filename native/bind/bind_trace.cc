// The timeline's events as arrays; hotset/engine/trace.py writes them.
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "base/trace.h"
#include "bind/bind.h"

namespace {

using namespace hotset;

// Names by number, in order of first use. They live for ever, so pointers are enough to know them by.
std::vector<const char*> names;

uint64_t number_of(const char* name) {
  const size_t at = static_cast<size_t>(std::find(names.begin(), names.end(), name) - names.begin());
  if (at == names.size()) names.push_back(name);
  return at;
}

nb::tuple as_tuple(const trace::Taken& t) {
  constexpr size_t kColumns = 5;
  auto* rows = new std::vector<uint64_t>;
  nb::capsule owner(rows, [](void* p) noexcept { delete static_cast<std::vector<uint64_t>*>(p); });
  rows->reserve(t.events.size() * kColumns);
  for (const trace::Event& e : t.events)
    rows->insert(rows->end(), {number_of(e.name), e.begin, e.end, static_cast<uint64_t>(e.kind), e.value});
  return nb::make_tuple(t.thread, t.thread_name, t.lost,
                        nb::ndarray<nb::numpy, uint64_t>(rows->data(), {t.events.size(), kColumns}, owner));
}

nb::list take() {
  nb::list out;
  for (const trace::Taken& t : trace::take()) out.append(as_tuple(t));
  return out;
}

nb::list name_list() {
  nb::list out;
  for (const char* name : names) out.append(name);
  return out;
}

}  // namespace

void bind_trace(nb::module_& m) {
  m.def("trace_enable", [](bool on) { trace::enabled = on; }, nb::arg("on"));
  m.def("trace_take", &take);
  m.def("trace_names", &name_list);
  m.def("trace_filled", &trace::fullest);
  m.def("trace_now", &trace::now);
}
