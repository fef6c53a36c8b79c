// What the back ends share: a back end starts reads and reports the ended ones; all checks are made here.
#pragma once

#include <vector>

#include "io/file.h"
#include "io/reader.h"

namespace hotset::io {

class QueueReader : public Reader {
 public:
  QueueReader(File file, size_t depth) : file_(std::move(file)), depth_(depth) {}
  size_t alignment() const override { return file_.alignment(); }
  size_t depth() const override { return depth_; }
  uint64_t file_bytes() const override { return file_.bytes(); }
  void submit(std::span<const Read> reads) final;
  size_t wait(std::span<uint64_t> tags, size_t min_done) final;

 protected:
  struct Done {
    Read read;
    ssize_t got;  // bytes, or -errno
  };
  virtual void start(std::span<const Read> reads) = 0;
  // Takes the oldest ended read. If there is none, sleeps until `at_least` have ended, or returns false if
  // that is 0.
  virtual bool take(Done& done, size_t at_least) = 0;
  const File& file() const { return file_; }
  size_t in_flight() const { return in_flight_; }

 private:
  void check(const Read& read, size_t index) const;
  void check(const Done& done) const;

  File file_;
  size_t depth_, in_flight_ = 0;
  std::vector<Read> stamped_;  // of a submit() that a timeline shows
};

// Each in the file of its name. make_io_uring exists only where HOTSET_HAVE_IO_URING is defined.
std::unique_ptr<Reader> make_io_uring(File file, size_t depth);
std::unique_ptr<Reader> make_pread(File file, size_t depth);
std::unique_ptr<Reader> make_memory(File file, size_t depth);
std::unique_ptr<Reader> make_null(File file, size_t depth);

}  // namespace hotset::io
