// A few threads that call pread(2): for kernels and sandboxes without io_uring.
#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "base/error.h"
#include "io/backend.h"

namespace hotset::io {
namespace {

// A drive reaches most of its rate at queue depth 16; more blocked threads only add switches.
constexpr size_t kMaxThreads = 16;

class PreadReader final : public QueueReader {
 public:
  PreadReader(File opened, const ReaderOptions& options) : QueueReader(std::move(opened), options) {
    start_threads(std::min(options.depth, kMaxThreads));
  }

  ~PreadReader() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
      waiting_.clear();  // not begun; those that were end before join() returns
    }
    work_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  const char* backend() const override { return "pread"; }

 private:
  // Where the system gives fewer, these do.
  void start_threads(size_t wanted) {
    threads_.reserve(wanted);
    try {
      while (threads_.size() < wanted) threads_.emplace_back([this] { work(); });
    } catch (const std::exception& e) {
      if (threads_.empty())
        throw IoError(file().path() + ": can start none of " + std::to_string(wanted) +
                      " threads that read: " + e.what() +
                      "; raise the limit on threads or close other programs");
    }
  }

  void start(std::span<const Transfer> transfers) override {
    {
      const std::lock_guard lock(mutex_);
      waiting_.insert(waiting_.end(), transfers.begin(), transfers.end());
    }
    transfers.size() == 1 ? work_.notify_one() : work_.notify_all();
  }

  bool take(Done& done, size_t at_least) override {
    std::unique_lock lock(mutex_);
    if (ended_.empty() && at_least == 0) return false;
    one_ended_.wait(lock, [&] { return !ended_.empty(); });
    done = ended_.front();
    ended_.pop_front();
    return true;
  }

  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      work_.wait(lock, [&] { return stop_ || !waiting_.empty(); });
      if (stop_) return;
      const Transfer t = waiting_.front();
      waiting_.pop_front();
      lock.unlock();
      const auto to = target(t);
      const ssize_t got = read_fully(file().fd(), to.data(), to.size(), offset_of(t));
      lock.lock();
      ended_.push_back({t, got});
      one_ended_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable work_, one_ended_;
  std::deque<Transfer> waiting_;
  std::deque<Done> ended_;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<Reader> make_pread(File file, const ReaderOptions& options) {
  return std::make_unique<PreadReader>(std::move(file), options);
}

}  // namespace hotset::io
