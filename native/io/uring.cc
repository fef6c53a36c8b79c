// io_uring: one system call submits a whole batch. Source: io_uring(7), liburing.
#ifdef HOTSET_HAVE_IO_URING

#include <liburing.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "io/backend.h"

namespace hotset::io {
namespace {

// Completions need no interrupt of the owner, which asks for them anyway: a flag in the ring tells it,
// without a system call, that some are due. Kernels before 5.19 know neither. (DEFER_TASKRUN would save 0.4
// us a read more, but only the thread that made the ring may then wait, and an engine's steps come from any.)
int set_up(io_uring* ring, size_t depth) {
#if defined(IORING_SETUP_COOP_TASKRUN) && defined(IORING_SETUP_TASKRUN_FLAG)
  const int error = io_uring_queue_init(static_cast<unsigned>(depth), ring,
                                        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG);
  if (error != -EINVAL) return error;
#endif
  return io_uring_queue_init(static_cast<unsigned>(depth), ring, 0);
}

constexpr size_t kMostRegistered = size_t{1} << 30;  // of one registered piece, by the kernel

class UringReader final : public QueueReader {
 public:
  UringReader(File opened, const ReaderOptions& options) : QueueReader(std::move(opened), options) {
    const int error = set_up(&ring_, options.depth);
    if (error < 0) fail("cannot set up io_uring", error);
    const int fd = file().fd();
    // A registered file saves the look-up for each read; where the limit on open files forbids it, do
    // without.
    file_registered_ = io_uring_register_files(&ring_, &fd, 1) == 0;
  }

  ~UringReader() override {
    Done done;
    while (in_kernel_ > 0) take(done, 1);  // the kernel still writes into the callers' memory
    io_uring_queue_exit(&ring_);
  }

  const char* backend() const override { return "io_uring"; }

  // The kernel then need not look up and pin the pages of every read. It refuses where locked memory is
  // limited.
  void register_memory(std::span<uint8_t> memory) override {
    std::vector<iovec> pieces;
    for (size_t at = 0; at < memory.size(); at += kMostRegistered)
      pieces.push_back({memory.data() + at, std::min(kMostRegistered, memory.size() - at)});
    if (io_uring_register_buffers(&ring_, pieces.data(), static_cast<unsigned>(pieces.size())) == 0)
      memory_ = memory;
  }

  // Not left to the end of the ring, which the kernel takes down some time later: until then the pages stay
  // pinned.
  void unregister_memory() override {
    if (memory_.empty()) return;
    if (const int error = io_uring_unregister_buffers(&ring_); error < 0)
      fail("cannot unregister memory", error);
    memory_ = {};
  }

 private:
  [[noreturn]] void fail(const char* what, int error) const {
    throw IoError(file().path() + ": " + what + ": " + strerror(-error));
  }

  void start(std::span<const Transfer> transfers) override {
    for (Transfer t : transfers) prepare(t);
    for (size_t left = transfers.size(); left > 0;) {
      const int n = io_uring_submit(&ring_);
      if (n == -EINTR) continue;
      if (n <= 0) fail("cannot submit reads to io_uring", n);
      left -= static_cast<size_t>(n);
      in_kernel_ += static_cast<size_t>(n);
    }
  }

  void prepare(Transfer t) {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);  // never null: submit() admits no more than `depth` reads
    const int fd = file_registered_ ? 0 : file().fd();
    const std::span<uint8_t> to = target(t);
    const auto size = static_cast<unsigned>(to.size());
    if (const int index = registered(to); index >= 0)
      io_uring_prep_read_fixed(sqe, fd, to.data(), size, offset_of(t), index);
    else
      io_uring_prep_read(sqe, fd, to.data(), size, offset_of(t));
    if (file_registered_) io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data(sqe, reinterpret_cast<void*>(uintptr_t{t}));
  }

  // Number of the registered piece that holds all of `dst`, or -1.
  int registered(std::span<const uint8_t> dst) const {
    if (dst.data() < memory_.data() || dst.data() + dst.size() > memory_.data() + memory_.size()) return -1;
    const auto at = static_cast<size_t>(dst.data() - memory_.data());
    const size_t piece = at / kMostRegistered;
    return (at + dst.size() - 1) / kMostRegistered == piece ? static_cast<int>(piece) : -1;
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
    done = {static_cast<Transfer>(reinterpret_cast<uintptr_t>(io_uring_cqe_get_data(cqe))), cqe->res};
    io_uring_cqe_seen(&ring_, cqe);
    --in_kernel_;
    return true;
  }

  io_uring ring_;
  bool file_registered_ = false;
  std::span<uint8_t> memory_;  // registered, in pieces
  size_t in_kernel_ = 0;       // transfers submitted and not taken
};

}  // namespace

std::unique_ptr<Reader> make_io_uring(File file, const ReaderOptions& options) {
  return std::make_unique<UringReader>(std::move(file), options);
}

bool io_uring_works() {
  io_uring ring;
  if (set_up(&ring, 1) < 0) return false;
  io_uring_queue_exit(&ring);
  return true;
}

}  // namespace hotset::io

#endif
