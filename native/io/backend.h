// What the back ends share: which reads are in flight and which of them go to the drive as one. A back end
// moves transfers; all checks, merging and second tries are here.
#pragma once

#include <vector>

#include "base/memory.h"
#include "io/file.h"
#include "io/reader.h"

namespace hotset::io {

class QueueReader : public Reader {
 public:
  QueueReader(File file, const ReaderOptions& options);
  size_t alignment() const override { return file_.alignment(); }
  size_t depth() const override { return depth_; }
  uint64_t requests() const override { return requests_; }
  uint64_t bytes() const override { return bytes_; }
  uint64_t file_bytes() const override { return file_.bytes(); }
  size_t submit(std::span<const Read> reads) final;
  size_t wait(std::span<uint64_t> tags, size_t min_done) final;

 protected:
  // Reads that go to the drive as one, known by the slot of the first; depth() of them in flight at most.
  using Transfer = uint32_t;
  struct Done {
    Transfer transfer;
    ssize_t got;  // bytes, or -errno
  };
  virtual void start(std::span<const Transfer> transfers) = 0;
  // Takes the oldest ended transfer. If there is none, sleeps until `at_least` have ended, or returns false
  // if that is 0.
  virtual bool take(Done& done, size_t at_least) = 0;
  // The second try for a read whose transfer stopped short: bytes, or -errno.
  virtual ssize_t read_again(const Read& read);

  const File& file() const { return file_; }
  // Thread-safe for a transfer in flight.
  uint64_t offset_of(Transfer t) const { return slots_[t].read.offset; }
  // One piece of memory: the read's own if it is alone; a drive takes scattered places a good deal slower.
  std::span<uint8_t> target(Transfer t) const;

 private:
  static constexpr uint32_t kLast = UINT32_MAX;
  static constexpr size_t kMostBounces = 64;  // merged transfers in flight; more keep no drive busier
  struct Slot {
    Read read;
    uint32_t next = kLast;      // part of the same transfer
    uint64_t started = 0;       // ns, for timelines
    uint8_t* bounce = nullptr;  // of the first of several parts: where the drive writes
    size_t bytes = 0;           // of the first: of the whole transfer
  };
  void check(const Read& read, size_t index) const;
  size_t place(std::span<const Read> reads);
  bool near(const Slot& first, const Slot& last, const Read& read) const;
  void join(Slot& first, Slot& last, uint32_t slot);
  bool bounce(Slot& first);
  void finish(const Done& done);
  size_t wanted(const Read& read) const;
  void complete(const Read& read, ssize_t got);

  File file_;
  size_t depth_, merged_bytes_, gap_bytes_;
  std::vector<Slot> slots_;         // never resized: threads of back ends look into it
  std::vector<uint32_t> free_;      // of slots_
  std::vector<Transfer> starting_;  // of the running submit()
  std::vector<uint64_t> ended_;     // tags that no wait() has handed back yet, oldest first
  size_t transfers_ = 0;            // in flight
  uint64_t requests_ = 0, bytes_ = 0;
  Buffer bounces_;                // [kMostBounces][merged_bytes], made for the first merged transfer
  std::vector<uint8_t*> unused_;  // of bounces_
};

// Each in the file of its name. make_io_uring exists only where HOTSET_HAVE_IO_URING is defined.
std::unique_ptr<Reader> make_io_uring(File file, const ReaderOptions& options);
std::unique_ptr<Reader> make_pread(File file, const ReaderOptions& options);
std::unique_ptr<Reader> make_memory(File file, const ReaderOptions& options);
std::unique_ptr<Reader> make_null(File file, const ReaderOptions& options);
std::unique_ptr<Reader> make_fault(File file, const ReaderOptions& options);

}  // namespace hotset::io
