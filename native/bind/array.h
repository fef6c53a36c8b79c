// Arrays from and to Python. A wrong dtype, shape or stride becomes a UsageError that names argument, got and
// wanted.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/error.h"

namespace hotset::bind {

namespace nb = nanobind;

inline constexpr size_t kAny = SIZE_MAX;  // a dimension of any size

// A C-contiguous array that stays alive as long as this; T const: Python may have made it read-only.
template <class T>
struct View {
  using Array = std::conditional_t<std::is_const_v<T>, nb::ndarray<nb::ro, nb::device::cpu>,
                                   nb::ndarray<nb::device::cpu>>;
  Array keep;
  std::span<T> data;

  size_t shape(size_t i) const { return keep.shape(i); }
};

inline std::string text(const std::vector<size_t>& shape) {
  std::string s = "[";
  for (size_t n : shape) s += (s.size() > 1 ? ", " : "") + (n == kAny ? "any" : std::to_string(n));
  return s + "]";
}

inline std::string text(nb::dlpack::dtype type) {
  constexpr const char* kKinds[] = {"int", "uint", "float"};
  return type.code < 3 ? kKinds[type.code] + std::to_string(type.bits) : "another kind";
}

template <class Array>
bool is_contiguous(const Array& a) {
  int64_t stride = 1;
  for (size_t i = a.ndim(); i-- > 0; stride *= static_cast<int64_t>(a.shape(i)))
    if (a.shape(i) > 1 && a.stride(i) != stride) return a.size() == 0;
  return true;
}

// `shape`: the sizes wanted, kAny where any will do. Throws InvalidArgument.
template <class T>
View<T> view(nb::handle object, const std::string& name, const std::vector<size_t>& shape) {
  View<T> v;
  if (!nb::try_cast(object, v.keep, false))
    throw InvalidArgument(name + " is a " + nb::inst_name(object).c_str() + ", wanted a " +
                          (std::is_const_v<T> ? "NumPy array" : "writable NumPy array"));
  const auto wanted = nb::dtype<std::remove_const_t<T>>();
  if (v.keep.dtype() != wanted)
    throw InvalidArgument(name + " is an array of " + text(v.keep.dtype()) + ", wanted " + text(wanted));
  std::vector<size_t> got(v.keep.ndim());
  for (size_t i = 0; i < got.size(); ++i) got[i] = v.keep.shape(i);
  bool fits = got.size() == shape.size();
  for (size_t i = 0; fits && i < got.size(); ++i) fits = shape[i] == kAny || shape[i] == got[i];
  if (!fits) throw InvalidArgument(name + " has shape " + text(got) + ", wanted " + text(shape));
  if (!is_contiguous(v.keep))
    throw InvalidArgument(name + " is not contiguous; pass numpy.ascontiguousarray(" + name + ")");
  v.data = {static_cast<T*>(v.keep.data()), v.keep.size()};
  return v;
}

// Hands `values` to NumPy without a copy.
template <class T>
nb::object to_numpy(std::vector<T>&& values, const std::vector<size_t>& shape) {
  auto* kept = new std::vector<T>(std::move(values));
  const nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, T>(kept->data(), shape.size(), shape.data(), owner));
}

}  // namespace hotset::bind
