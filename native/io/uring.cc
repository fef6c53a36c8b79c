// io_uring: one system call submits a whole batch. Source: io_uring(7), liburing.
#ifdef HOTSET_HAVE_IO_URING

#include <liburing.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "io/backend.h"

namespace hotset::io {
namespace {

// Completions need no interrupt of the owner, which asks for them anyway; kernels before 5.19 do not know the
// flag.
int set_up(io_uring* ring, size_t depth) {
#ifdef IORING_SETUP_COOP_TASKRUN
  const int error = io_uring_queue_init(static_cast<unsigned>(depth), ring, IORING_SETUP_COOP_TASKRUN);
  if (error != -EINVAL) return error;
#endif
  return io_uring_queue_init(static_cast<unsigned>(depth), ring, 0);
}

class UringReader final : public QueueReader {
 public:
  UringReader(File opened, size_t depth) : QueueReader(std::move(opened), depth), slots_(depth) {
    const int error = set_up(&ring_, depth);
    if (error < 0) fail("cannot set up io_uring", error);
    const int fd = file().fd();
    // A registered file saves the look-up for each read; where the limit on open files forbids it, do
    // without.
    registered_ = io_uring_register_files(&ring_, &fd, 1) == 0;
    for (size_t i = 0; i < depth; ++i) free_.push_back(i);
  }

  ~UringReader() override {
    Done done;
    while (in_kernel_ > 0) take(done, 1);  // the kernel still writes into the callers' memory
    io_uring_queue_exit(&ring_);
  }

  const char* backend() const override { return "io_uring"; }

 private:
  [[noreturn]] void fail(const char* what, int error) const {
    throw IoError(file().path() + ": " + what + ": " + strerror(-error));
  }

  void start(std::span<const Read> reads) override {
    for (const Read& read : reads) prepare(read);
    for (size_t left = reads.size(); left > 0;) {
      const int n = io_uring_submit(&ring_);
      if (n == -EINTR) continue;
      if (n <= 0) fail("cannot submit reads to io_uring", n);
      left -= static_cast<size_t>(n);
      in_kernel_ += static_cast<size_t>(n);
    }
  }

  void prepare(const Read& read) {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);  // never null: submit() admits no more than `depth` reads
    io_uring_prep_read(sqe, registered_ ? 0 : file().fd(), read.dst.data(),
                       static_cast<unsigned>(read.dst.size()), read.offset);
    if (registered_) io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    const size_t slot = free_.back();
    free_.pop_back();
    slots_[slot] = read;
    io_uring_sqe_set_data(sqe, reinterpret_cast<void*>(slot));
  }

  bool take(Done& done, size_t at_least) override {
    io_uring_cqe* cqe = nullptr;
    if (io_uring_peek_cqe(&ring_, &cqe) != 0) {
      if (at_least == 0) return false;
      int error;
      do error = io_uring_wait_cqe_nr(&ring_, &cqe, static_cast<unsigned>(at_least));
      while (error == -EINTR);
      if (error < 0) fail("cannot wait for io_uring", error);
    }
    const auto slot = reinterpret_cast<size_t>(io_uring_cqe_get_data(cqe));
    done = {slots_[slot], cqe->res};
    io_uring_cqe_seen(&ring_, cqe);
    free_.push_back(slot);
    --in_kernel_;
    return true;
  }

  io_uring ring_;
  bool registered_ = false;
  size_t in_kernel_ = 0;      // reads submitted and not taken
  std::vector<Read> slots_;   // [depth] reads in flight
  std::vector<size_t> free_;  // places in slots_
};

}  // namespace

std::unique_ptr<Reader> make_io_uring(File file, size_t depth) {
  return std::make_unique<UringReader>(std::move(file), depth);
}

bool io_uring_works() {
  io_uring ring;
  if (set_up(&ring, 1) < 0) return false;
  io_uring_queue_exit(&ring);
  return true;
}

}  // namespace hotset::io

#endif
