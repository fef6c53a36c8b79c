// Python dict -> ModelDesc.
#pragma once

#include <nanobind/nanobind.h>

#include "model/descriptor.h"

namespace hotset::bind {

// Every field of ModelDesc must be there and nothing else; throws InvalidArgument naming the field.
model::ModelDesc model_desc(const nanobind::dict& d);
kernels::Activation activation(const std::string& name);  // throws InvalidArgument naming the choices

}  // namespace hotset::bind
