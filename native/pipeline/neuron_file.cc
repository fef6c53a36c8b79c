#include "pipeline/neuron_file.h"

#include "base/crc32c.h"
#include "base/error.h"

namespace hotset::pipeline {

void check_bundle(const NeuronFile& file, size_t layer, size_t neuron, const uint8_t* bundle, size_t bytes,
                  uint32_t wanted) {
  const uint32_t got = crc32c(bundle, bytes);
  if (got == wanted) return;
  throw InvalidWeight(file.path + ": neuron " + std::to_string(neuron) + " of layer " +
                      std::to_string(layer) + " (" + std::to_string(bytes) + " bytes at offset " +
                      std::to_string(file.position(layer, neuron)) + ") has checksum " + std::to_string(got) +
                      ", wanted " + std::to_string(wanted) +
                      "; the file is damaged or the drive failed: copy it again or pack again");
}

}  // namespace hotset::pipeline
