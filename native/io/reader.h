// Reads ranges of one file without blocking the compute threads. Backends: io_uring, pread threads, memory
// (tests), null (benchmarks).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace hotset::io {

struct Read {
  uint64_t offset;         // bytes from the start of the file
  std::span<uint8_t> dst;  // the caller keeps it alive until wait() returns `tag`; 1 B to 1 GiB
  uint64_t tag;            // handed back unchanged
};

// Owned by one thread; use one Reader per thread. Offset, address and size of a Read must be multiples of
// alignment(). Source: submit/complete split of io_uring(7); alignment rule of open(2), O_DIRECT.
class Reader {
 public:
  virtual ~Reader() = default;  // waits for the reads in flight
  virtual const char* backend() const = 0;
  virtual size_t alignment() const = 0;   // bytes; 1 means any (buffered)
  virtual size_t depth() const = 0;       // most requests in flight
  virtual uint64_t requests() const = 0;  // that the drive got so far
  virtual uint64_t bytes() const = 0;     // that these asked for, gaps included
  virtual uint64_t file_bytes() const = 0;
  // Queues as many of `reads` as there is room for, in order, and returns at once how many: all if no more
  // than depth() are in flight then. Reads whose ranges are near in that order are one request, wherever they
  // go to. The last block of the file may reach past its end by less than alignment(); what lies there is not
  // written. Throws IoError: which field of which read is misaligned or past the end; then none is queued.
  virtual size_t submit(std::span<const Read> reads) = 0;
  // Blocks until `min_done` reads have ended (min_done <= tags.size()); writes their tags, oldest completion
  // first, and returns how many. With min_done 0 it only looks, which costs no system call unless some have
  // ended. Throws IoError on a short or failed read, with path, offset, got, wanted; after that the Reader is
  // good for nothing but destruction.
  virtual size_t wait(std::span<uint64_t> tags, size_t min_done) = 0;
  // Makes reads into this memory cost less from now on, where the back end can. All of it becomes resident
  // and must outlive the Reader, or be unregistered while no read is in flight. One piece at a time.
  virtual void register_memory(std::span<uint8_t> memory) { static_cast<void>(memory); }
  virtual void unregister_memory() {}
};

struct ReaderOptions {
  // auto | io_uring | pread | memory | null, or fault:KIND:SEED:RATE (tests; see fault.cc)
  std::string backend = "auto";
  size_t depth = 64;   // 1 to 4096; pread starts up to 16 threads
  bool direct = true;  // O_DIRECT where the file system takes it (tried by a real read), else buffered
  // Most bytes that go as one request, and most between two reads that are read with them and forgotten: so
  // much more takes a drive no longer than another request.
  size_t merged_bytes = size_t{128} << 10;
  size_t gap_bytes = size_t{32} << 10;
};
std::unique_ptr<Reader> open_reader(const std::string& path, const ReaderOptions& options);
bool io_uring_compiled();
bool io_uring_works();  // the kernel lets us set one up

// Reads [offset, offset + dst.size()) with large overlapped reads: past the page cache at the rate of the
// drive, or from it if the file is there. Fastest if offset and dst are multiples of 4 KiB; the size may be
// any.
void read_all(const std::string& path, uint64_t offset, std::span<uint8_t> dst);

}  // namespace hotset::io
