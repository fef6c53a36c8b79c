// The tables that the ISA folders define and dispatch.cc lists.
#pragma once

#include "kernels/kernels.h"

namespace hotset::kernels {

extern const Kernels kScalar, kAvx2, kAvx512, kAvx512Vnni, kNeon, kNeonDotprod, kNeonI8mm;

}  // namespace hotset::kernels
