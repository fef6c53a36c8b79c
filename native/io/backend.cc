#include "io/backend.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/trace.h"

namespace hotset::io {
namespace {

constexpr uint64_t kMaxRead = uint64_t{1} << 30;  // read(2) stops at 2 GiB less a page

[[noreturn]] void refuse(const File& file, const Read& read, size_t index, const std::string& why) {
  throw IoError(file.path() + ": read " + std::to_string(index) + " (offset " + std::to_string(read.offset) +
                ", " + std::to_string(read.dst.size()) + " bytes): " + why);
}

constexpr size_t kBlock = 4096;  // buffers of transfers begin at multiples of it, whatever drive it is

uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

}  // namespace

// 16 parts a transfer on average: 64 KiB of bundles of 4 KiB, the smallest that are worth reading one by one.
QueueReader::QueueReader(File file, const ReaderOptions& options)
    : file_(std::move(file)),
      depth_(options.depth),
      merged_bytes_(options.merged_bytes / kBlock * kBlock),
      gap_bytes_(options.gap_bytes),
      slots_(16 * options.depth) {
  for (size_t i = slots_.size(); i-- > 0;) free_.push_back(static_cast<uint32_t>(i));
}

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

size_t QueueReader::submit(std::span<const Read> reads) {
  const trace::Span span("submit");
  for (size_t i = 0; i < reads.size(); ++i) check(reads[i], i);
  const size_t taken = place(reads);
  transfers_ += starting_.size();
  requests_ += starting_.size();
  for (const Transfer t : starting_) bytes_ += slots_[t].bytes;
  if (taken > 0) start(starting_);
  return taken;
}

// Gives reads slots and chains those that are read as one, while there is room; returns how many.
size_t QueueReader::place(std::span<const Read> reads) {
  const uint64_t now = trace::on() ? trace::now() : 0;
  starting_.clear();
  uint32_t last = kLast;
  size_t taken = 0;
  for (; taken < reads.size() && !free_.empty(); ++taken) {
    const Read& read = reads[taken];
    const bool joins = last != kLast && near(slots_[starting_.back()], slots_[last], read) &&
                       bounce(slots_[starting_.back()]);
    if (!joins && transfers_ + starting_.size() == depth_) break;
    const uint32_t slot = free_.back();
    free_.pop_back();
    slots_[slot] = {read, kLast, now, nullptr, read.dst.size()};
    if (joins)
      join(slots_[starting_.back()], slots_[last], slot);
    else
      starting_.push_back(slot);
    last = slot;
  }
  return taken;
}

bool QueueReader::near(const Slot& first, const Slot& last, const Read& read) const {
  const uint64_t end = last.read.offset + last.read.dst.size();
  return read.offset >= end && read.offset - end <= gap_bytes_ &&
         read.offset + read.dst.size() - first.read.offset <= merged_bytes_;
}

void QueueReader::join(Slot& first, Slot& last, uint32_t slot) {
  const Read& read = slots_[slot].read;
  last.next = slot;
  first.bytes = read.offset + read.dst.size() - first.read.offset;
}

// Memory for the parts of a transfer, if there is some left.
bool QueueReader::bounce(Slot& first) {
  if (first.bounce) return true;
  if (bounces_.size() == 0) {
    const size_t count = std::min(depth_, kMostBounces);
    bounces_ = Buffer(count * merged_bytes_);
    for (size_t i = count; i-- > 0;) unused_.push_back(bounces_.data() + i * merged_bytes_);
  }
  if (unused_.empty()) return false;
  first.bounce = unused_.back();
  unused_.pop_back();
  return true;
}

std::span<uint8_t> QueueReader::target(Transfer t) const {
  const Slot& first = slots_[t];
  return {first.bounce ? first.bounce : first.read.dst.data(), first.bytes};
}

size_t QueueReader::wanted(const Read& read) const {
  return static_cast<size_t>(std::min<uint64_t>(read.dst.size(), file_.bytes() - read.offset));
}

ssize_t QueueReader::read_again(const Read& read) {
  return read_fully(file_.fd(), read.dst.data(), read.dst.size(), read.offset);
}

// A kernel may stop short anywhere, and of a merged transfer one part may be what fails: what is missing is
// asked for once more, part by part, so that an error is certain and names the read.
void QueueReader::complete(const Read& read, ssize_t got) {
  if (got < 0 || static_cast<size_t>(got) < wanted(read)) got = read_again(read);
  if (got < 0 || static_cast<size_t>(got) < wanted(read))
    throw_read_error(file_.path(), read.offset, got, wanted(read));
}

void QueueReader::finish(const Done& done) {
  --transfers_;
  const Slot first = slots_[done.transfer];
  if (first.started > 0 && trace::on())
    trace::record(
        {"read", first.started, trace::now(), trace::Kind::read, static_cast<uint32_t>(first.bytes)});
  if (first.bounce) unused_.push_back(first.bounce);
  for (uint32_t i = done.transfer; i != kLast; i = slots_[i].next) {
    const Read& read = slots_[i].read;
    const auto at = static_cast<ssize_t>(read.offset - first.read.offset);
    const ssize_t got = done.got < 0
                            ? done.got
                            : std::clamp<ssize_t>(done.got - at, 0, static_cast<ssize_t>(read.dst.size()));
    if (first.bounce && got > 0) std::memcpy(read.dst.data(), first.bounce + at, static_cast<size_t>(got));
    complete(read, got);
    ended_.push_back(read.tag);
    free_.push_back(i);
  }
}

size_t QueueReader::wait(std::span<uint64_t> tags, size_t min_done) {
  const size_t in_flight = slots_.size() - free_.size() + ended_.size();
  if (min_done > tags.size() || min_done > in_flight)
    throw InvalidArgument("waiting for " + std::to_string(min_done) + " reads with room for " +
                          std::to_string(tags.size()) + " and " + std::to_string(in_flight) + " in flight");
  const trace::Span span(min_done > ended_.size() ? "wait for drive" : nullptr);
  // Only if all are wanted it is known how many transfers that takes.
  const bool all = min_done == in_flight;
  for (Done done; ended_.size() < tags.size() && transfers_ > 0;) {
    if (!take(done, all ? transfers_ : ended_.size() < min_done ? 1 : 0)) break;
    finish(done);
  }
  const size_t n = std::min(tags.size(), ended_.size());
  std::copy_n(ended_.begin(), n, tags.begin());
  ended_.erase(ended_.begin(), ended_.begin() + static_cast<ptrdiff_t>(n));
  return n;
}

}  // namespace hotset::io
