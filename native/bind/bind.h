// One function per area; module.cc calls them.
#pragma once

#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_host(nb::module_& m);
void bind_quant(nb::module_& m);
void bind_kernels(nb::module_& m);  // calls bind_attend
void bind_attend(nb::module_& m);
void bind_engine(nb::module_& m);
void bind_sparse(nb::module_& m);
void bind_sampler(nb::module_& m);
void bind_trace(nb::module_& m);
