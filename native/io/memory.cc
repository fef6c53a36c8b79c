// The whole file in memory, copied when a read is submitted: tests of what lies above need no drive.
#include <algorithm>
#include <cstring>
#include <deque>

#include "base/memory.h"
#include "io/backend.h"

namespace hotset::io {
namespace {

class MemoryReader final : public QueueReader {
 public:
  MemoryReader(File file, size_t depth) : QueueReader(std::move(file), depth), content_(file_bytes()) {
    const ssize_t got = read_fully(this->file().fd(), content_.data(), content_.size(), 0);
    if (got != static_cast<ssize_t>(content_.size()))
      throw_read_error(this->file().path(), 0, got, content_.size());
  }
  const char* backend() const override { return "memory"; }

 private:
  void start(std::span<const Read> reads) override {
    for (const Read& read : reads) {
      const size_t n = std::min<size_t>(read.dst.size(), content_.size() - read.offset);
      std::memcpy(read.dst.data(), content_.data() + read.offset, n);
      done_.push_back({read, static_cast<ssize_t>(n)});
    }
  }
  bool take(Done& done, size_t) override {
    done = done_.front();
    done_.pop_front();
    return true;
  }

  Buffer content_;
  std::deque<Done> done_;
};

}  // namespace

std::unique_ptr<Reader> make_memory(File file, size_t depth) {
  return std::make_unique<MemoryReader>(std::move(file), depth);
}

}  // namespace hotset::io
