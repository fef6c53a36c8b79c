// What a drive gives for one block size and queue depth, and what each read costs the CPU.
#pragma once

#include <cstddef>
#include <string>

namespace hotset::io {

struct DriveRate {
  double bytes_per_s = 0, reads_per_s = 0;
  double cpu_us_per_read = 0;  // user and kernel time of the process
  bool direct = false;         // false: the file system has no direct I/O, so the page cache answered
  double work_share = 1;       // of the cores' speed that is left to them while they keep the drive busy
};

// Reads whole blocks of an existing file for `seconds`, `depth` in flight, in random or rising order.
// memory_bytes: that they go to in turn, if that is more than the blocks in flight are: what a virtual drive
// writes into comes later where it is too much for the caches. Throws IoError, also if the file is smaller
// than a block; InvalidArgument.
DriveRate measure_drive(const std::string& path, size_t block_bytes, size_t depth, const std::string& backend,
                        bool random, double seconds, size_t memory_bytes = 0);

// The same in rising order while `threads` threads compute, one of which sends and takes reads between two
// pieces of its work, as a pass over all neurons does. A quarter of `seconds` goes to computing alone.
DriveRate measure_busy_drive(const std::string& path, size_t block_bytes, size_t depth,
                             const std::string& backend, size_t threads, double seconds);

}  // namespace hotset::io
