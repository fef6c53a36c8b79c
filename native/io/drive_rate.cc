#include "io/drive_rate.h"

#include <sys/resource.h>

#include <chrono>
#include <numeric>
#include <random>
#include <vector>

#include "base/error.h"
#include "base/memory.h"
#include "io/reader.h"

namespace hotset::io {
namespace {

double cpu_seconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Which block to read next.
class Blocks {
 public:
  Blocks(uint64_t count, bool random) : count_(count), random_(random) {}
  uint64_t next() {
    return random_ ? std::uniform_int_distribution<uint64_t>(0, count_ - 1)(rng_) : next_++ % count_;
  }

 private:
  uint64_t count_, next_ = 0;
  bool random_;
  std::mt19937_64 rng_{1};  // the same blocks each time
};

// Keeps the queue full until `seconds` have passed; returns the number of reads that ended.
size_t run(Reader& reader, size_t block_bytes, Blocks& blocks, double seconds) {
  using Clock = std::chrono::steady_clock;
  const size_t depth = reader.depth();
  const Buffer memory(depth * block_bytes);
  std::vector<uint64_t> tags(depth);
  std::iota(tags.begin(), tags.end(), 0);
  std::vector<Read> batch;
  const auto deadline = Clock::now() + std::chrono::duration<double>(seconds);
  size_t ended = 0;
  for (size_t free = depth; Clock::now() < deadline; ended += free) {
    batch.clear();
    for (size_t i = 0; i < free; ++i)
      batch.push_back(
          {blocks.next() * block_bytes, {memory.data() + tags[i] * block_bytes, block_bytes}, tags[i]});
    reader.submit(batch);
    free = reader.wait(tags, 1);
  }
  return ended;
}

}  // namespace

DriveRate measure_drive(const std::string& path, size_t block_bytes, size_t depth, const std::string& backend,
                        bool random, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto reader = open_reader(path, {backend, depth, true, 0});  // each block a request
  if (block_bytes == 0 || reader->file_bytes() < block_bytes)
    throw IoError(path + ": file has " + std::to_string(reader->file_bytes()) +
                  " bytes, wanted at least one block of " + std::to_string(block_bytes));
  Blocks blocks(reader->file_bytes() / block_bytes, random);
  const double cpu = cpu_seconds();
  const auto start = Clock::now();
  const auto reads = static_cast<double>(run(*reader, block_bytes, blocks, seconds));
  const double elapsed = std::chrono::duration<double>(Clock::now() - start).count();
  return {reads * static_cast<double>(block_bytes) / elapsed, reads / elapsed,
          1e6 * (cpu_seconds() - cpu) / reads, reader->alignment() > 1};
}

}  // namespace hotset::io
