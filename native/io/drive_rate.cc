#include "io/drive_rate.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "base/crc32c.h"
#include "base/error.h"
#include "base/memory.h"
#include "base/thread_pool.h"
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

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Keeps the queue of a reader full.
class Queue {
 public:
  // places: for blocks, taken in turn; at least as many as are in flight.
  Queue(std::unique_ptr<Reader> reader, size_t block_bytes, bool random, size_t places)
      : block_bytes_(block_bytes),
        blocks_(reader->file_bytes() / block_bytes, random),
        places_(std::max(places, reader->depth())),
        memory_(places_.size() * block_bytes),
        tags_(reader->depth()),
        free_(reader->depth()),
        reader_(std::move(reader)) {
    std::iota(places_.begin(), places_.end(), 0);
    std::memset(memory_.data(), 0, memory_.size());  // resident before anything is timed
  }

  // Sends a read for each one that has ended, then takes at least so many that end.
  void turn(size_t min_done) {
    batch_.clear();
    for (; free_ > 0; --free_, places_.pop_front()) {
      const uint64_t place = places_.front();
      batch_.push_back(
          {blocks_.next() * block_bytes_, {memory_.data() + place * block_bytes_, block_bytes_}, place});
    }
    reader_->submit(batch_);
    free_ = reader_->wait(tags_, min_done);
    places_.insert(places_.end(), tags_.begin(), tags_.begin() + static_cast<ptrdiff_t>(free_));
    ended_ += free_;
  }

  DriveRate rate(double elapsed, double cpu) const {
    const auto reads = static_cast<double>(ended_);
    return {reads * static_cast<double>(block_bytes_) / elapsed, reads / elapsed, 1e6 * cpu / reads,
            reader_->alignment() > 1};
  }

 private:
  size_t block_bytes_;
  Blocks blocks_;
  std::deque<uint64_t> places_;  // that no read is on its way to, the longest idle first
  Buffer memory_;
  std::vector<uint64_t> tags_;  // of the reads that ended: their places
  size_t free_, ended_ = 0;     // reads that may be sent; all that ended
  std::vector<Read> batch_;
  std::unique_ptr<Reader> reader_;  // after what it reads into: it waits for what is under way
};

std::unique_ptr<Reader> opened(const std::string& path, size_t block_bytes, size_t depth,
                               const std::string& backend) {
  auto reader = open_reader(path, {backend, depth, true, 0});  // each block a request
  if (block_bytes == 0 || reader->file_bytes() < block_bytes)
    throw IoError(path + ": file has " + std::to_string(reader->file_bytes()) +
                  " bytes, wanted at least one block of " + std::to_string(block_bytes));
  return reader;
}

// That the engine reads layers into, layer_stream.h.
constexpr size_t kStreamBytes = size_t{28} << 20;

// What cores do meanwhile: checksums of data in their own caches, so that it is they alone who set the pace.
class Work {
 public:
  explicit Work(size_t threads) : pool_(threads), memory_(threads * kBytes), sums_(threads * kLine) {}

  // Pieces a second, of all threads together. meanwhile: called by one of them before each of its pieces.
  template <class Meanwhile>
  double rate(double seconds, Meanwhile meanwhile) {
    const auto start = Clock::now();
    size_t rounds = 0;
    for (; rounds == 0 || seconds_since(start) < seconds; ++rounds)
      pool_.parallel_for(kPieces, 1, [&](size_t, size_t, size_t thread) {
        if (thread == 0) meanwhile();
        uint32_t& sum = sums_[thread * kLine];
        sum = crc32c(memory_.data() + thread * kBytes, kBytes, sum);
      });
    return static_cast<double>(rounds * kPieces) / seconds_since(start);
  }

 private:
  static constexpr size_t kBytes = 256 << 10;  // some 20 us
  static constexpr size_t kPieces = 64, kLine = 16;
  ThreadPool pool_;
  Buffer memory_;
  std::vector<uint32_t> sums_;
};

}  // namespace

DriveRate measure_drive(const std::string& path, size_t block_bytes, size_t depth, const std::string& backend,
                        bool random, double seconds, size_t memory_bytes) {
  auto reader = opened(path, block_bytes, depth, backend);
  Queue queue(std::move(reader), block_bytes, random, memory_bytes / block_bytes);
  const double cpu = cpu_seconds();
  const auto start = Clock::now();
  while (seconds_since(start) < seconds) queue.turn(1);
  return queue.rate(seconds_since(start), cpu_seconds() - cpu);
}

DriveRate measure_busy_drive(const std::string& path, size_t block_bytes, size_t depth,
                             const std::string& backend, size_t threads, double seconds) {
  Queue queue(opened(path, block_bytes, depth, backend), block_bytes, false, kStreamBytes / block_bytes);
  Work work(threads);
  const double alone = work.rate(seconds / 4, [] {});
  const auto start = Clock::now();
  const double beside = work.rate(3 * seconds / 4, [&] { queue.turn(0); });
  DriveRate found =
      queue.rate(seconds_since(start), 0);  // CPU time of reads cannot be told from that of work
  found.work_share = std::min(beside / alone, 1.0);
  return found;
}

}  // namespace hotset::io
