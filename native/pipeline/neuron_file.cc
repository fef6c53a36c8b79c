#include "pipeline/neuron_file.h"

#include <algorithm>

#include "base/crc32c.h"
#include "base/error.h"
#include "io/file.h"

namespace hotset::pipeline {

io::ReaderOptions options_for(const Units& units, io::ReaderOptions io) {
  if (!io.direct) return io;
  const size_t a = io::File(units.path, true).alignment();
  io.direct = units.stride % a == 0 && std::all_of(units.offset.begin(), units.offset.end(),
                                                   [a](uint64_t offset) { return offset % a == 0; });
  return io;
}

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
