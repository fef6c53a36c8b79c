#include "io/reader.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/memory.h"
#include "io/backend.h"

namespace hotset::io {
namespace {

using Factory = std::unique_ptr<Reader> (*)(File, const ReaderOptions&);

Factory io_uring_factory() {
#ifdef HOTSET_HAVE_IO_URING
  if (io_uring_works()) return make_io_uring;
#endif
  return nullptr;
}

Factory factory_of(const std::string& backend) {
  if (backend == "pread") return make_pread;
  if (backend == "memory") return make_memory;
  if (backend == "null") return make_null;
  if (backend.starts_with("fault:")) return make_fault;
  const Factory io_uring = io_uring_factory();
  if (backend == "auto") return io_uring ? io_uring : make_pread;
  if (backend != "io_uring")
    throw InvalidArgument("no I/O back end '" + backend + "'; wanted auto, io_uring, pread, memory or null");
  if (!io_uring)
    throw IoError(io_uring_compiled()
                      ? "the kernel refuses io_uring here; use the back end auto or pread"
                      : "built without io_uring (liburing's headers); use the back end auto or pread");
  return io_uring;
}

// 2.85 GB/s on an NVMe drive that gives 2.5 at 256 KiB; eight in flight keep it busy while one is being
// handed on.
constexpr size_t kChunk = size_t{1} << 20;
constexpr size_t kInFlight = 8;

void read_chunks(Reader& reader, uint64_t offset, std::span<uint8_t> dst) {
  uint64_t tags[kInFlight];
  size_t in_flight = 0;
  for (size_t at = 0; at < dst.size() || in_flight > 0;) {
    for (; at < dst.size() && in_flight < kInFlight; ++in_flight) {
      const size_t size = std::min(kChunk, dst.size() - at);
      const Read read{offset + at, dst.subspan(at, size), at};
      reader.submit({&read, 1});
      at += size;
    }
    in_flight -= reader.wait(tags, 1);
  }
}

std::unique_ptr<Reader> open_for(const File& file, uint64_t offset, std::span<const uint8_t> dst) {
  // Copies from the page cache run in the reading thread under io_uring, side by side under pread.
  if (file.is_cached(offset, dst.size())) return open_reader(file.path(), {"pread", kInFlight, false});
  auto reader = open_reader(file.path(), {"auto", kInFlight, true});
  const size_t a = reader->alignment();
  if (offset % a == 0 && reinterpret_cast<uintptr_t>(dst.data()) % a == 0) return reader;
  return open_reader(file.path(), {"pread", kInFlight, false});
}

}  // namespace

std::unique_ptr<Reader> open_reader(const std::string& path, const ReaderOptions& options) {
  if (options.depth < 1 || options.depth > 4096)
    throw InvalidArgument("depth of a reader must be between 1 and 4096, got " +
                          std::to_string(options.depth));
  const Factory make = factory_of(options.backend);
  // Memory takes any alignment, so nothing above it needs to care.
  return make(File(path, options.direct && options.backend != "memory"), options);
}

bool io_uring_compiled() {
#ifdef HOTSET_HAVE_IO_URING
  return true;
#else
  return false;
#endif
}

#ifndef HOTSET_HAVE_IO_URING
bool io_uring_works() { return false; }
#endif

void read_all(const std::string& path, uint64_t offset, std::span<uint8_t> dst) {
  const File file(path, false);
  if (offset > file.bytes() || dst.size() > file.bytes() - offset)
    throw_read_error(path, offset, static_cast<ssize_t>(file.bytes() - std::min(offset, file.bytes())),
                     dst.size());
  if (dst.empty()) return;
  Buffer block;  // before the reader, which waits for what is under way
  const auto reader = open_for(file, offset, dst);
  const size_t a = reader->alignment(), whole = dst.size() / a * a;
  read_chunks(*reader, offset, dst.first(whole));
  if (whole == dst.size()) return;
  block = Buffer(a);  // direct reads come in whole blocks
  read_chunks(*reader, offset + whole, {block.data(), a});
  std::memcpy(dst.data() + whole, block.data(), dst.size() - whole);
}

}  // namespace hotset::io
