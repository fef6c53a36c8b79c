// The module `hotset._core`: areas, version, and which Python exception a native one becomes.
#include <exception>

#include "base/error.h"
#include "bind/bind.h"

namespace {

void raise(const char* name, const char* what) {
  nb::object type = nb::module_::import_("hotset.errors").attr(name);
  PyErr_SetString(type.ptr(), what);
}

void translate(const std::exception_ptr& p, void*) {
  try {
    std::rethrow_exception(p);
  } catch (const hotset::InvalidArgument& e) {
    raise("UsageError", e.what());
  } catch (const hotset::InvalidWeight& e) {
    raise("FormatError", e.what());
  } catch (const hotset::IoError& e) {
    raise("StorageError", e.what());
  } catch (const hotset::OutOfMemory& e) {
    raise("MemoryBudgetError", e.what());
  } catch (const std::bad_alloc&) {
    raise("MemoryBudgetError",
          "out of memory; use a smaller context, fewer tokens per step or a smaller model");
  } catch (const hotset::UnsupportedIsa& e) {
    raise("HostError", e.what());
  } catch (const hotset::Cancelled& e) {
    PyErr_SetString(PyExc_KeyboardInterrupt, e.what());
  } catch (const hotset::Error& e) {
    raise("HotsetError", e.what());
  }
}

}  // namespace

NB_MODULE(_core, m) {
  nb::register_exception_translator(translate);
  m.attr("__version__") = HOTSET_VERSION;
  m.attr("compiler") = __VERSION__;
  bind_host(m);
  bind_quant(m);
  bind_kernels(m);
  bind_sampler(m);
  bind_sparse(m);
  bind_engine(m);
  bind_trace(m);
}
