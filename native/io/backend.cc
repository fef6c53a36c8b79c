#include "io/backend.h"

#include <algorithm>

#include "base/error.h"
#include "base/trace.h"

namespace hotset::io {
namespace {

constexpr uint64_t kMaxRead = uint64_t{1} << 30;  // read(2) stops at 2 GiB less a page

[[noreturn]] void refuse(const File& file, const Read& read, size_t index, const std::string& why) {
  throw IoError(file.path() + ": read " + std::to_string(index) + " (offset " + std::to_string(read.offset) +
                ", " + std::to_string(read.dst.size()) + " bytes): " + why);
}

uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

}  // namespace

void QueueReader::check(const Read& read, size_t index) const {
  const size_t a = alignment(), size = read.dst.size();
  const auto misaligned = [&](const char* field) {
    refuse(file_, read, index, std::string(field) + " is not a multiple of " + std::to_string(a));
  };
  if (read.offset % a != 0) misaligned("offset");
  if (size % a != 0) misaligned("size");
  if (reinterpret_cast<uintptr_t>(read.dst.data()) % a != 0) misaligned("address");
  if (size == 0 || size > kMaxRead) refuse(file_, read, index, "size must be between 1 byte and 1 GiB");
  const uint64_t end = round_up(file_.bytes(), a);
  if (read.offset >= file_.bytes() || size > end - read.offset)
    refuse(file_, read, index, "past the end of the file at " + std::to_string(file_.bytes()));
}

void QueueReader::submit(std::span<const Read> reads) {
  const trace::Span span("submit");
  if (reads.size() > depth_ - in_flight_)
    throw IoError(file_.path() + ": queue full: " + std::to_string(reads.size()) + " reads submitted, " +
                  std::to_string(in_flight_) + " of " + std::to_string(depth_) + " places taken");
  for (size_t i = 0; i < reads.size(); ++i) check(reads[i], i);
  if (trace::on()) {
    stamped_.assign(reads.begin(), reads.end());
    for (Read& read : stamped_) read.submitted = trace::now();
    reads = stamped_;
  }
  start(reads);
  in_flight_ += reads.size();
}

void QueueReader::check(const Done& done) const {
  const Read& read = done.read;
  const auto wanted = static_cast<size_t>(std::min<uint64_t>(read.dst.size(), file_.bytes() - read.offset));
  if (done.got < 0 || static_cast<size_t>(done.got) < wanted)
    throw_read_error(file_.path(), read.offset, done.got, wanted);
}

size_t QueueReader::wait(std::span<uint64_t> tags, size_t min_done) {
  if (min_done > tags.size() || min_done > in_flight_)
    throw InvalidArgument("waiting for " + std::to_string(min_done) + " reads with room for " +
                          std::to_string(tags.size()) + " and " + std::to_string(in_flight_) + " in flight");
  const trace::Span span(min_done > 0 ? "wait for drive" : nullptr);
  size_t n = 0;
  for (Done done; n < tags.size() && in_flight_ > 0 && take(done, n < min_done ? min_done - n : 0); ++n) {
    --in_flight_;
    check(done);
    if (done.read.submitted && trace::on())
      trace::record({"read", done.read.submitted, trace::now(), trace::Kind::read,
                     static_cast<uint32_t>(done.read.dst.size())});
    tags[n] = done.read.tag;
  }
  return n;
}

}  // namespace hotset::io
