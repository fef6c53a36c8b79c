#include "io/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/memory.h"

namespace hotset::io {
namespace {

[[noreturn]] void throw_open_error(const std::string& path, const char* why) {
  throw IoError("cannot open " + path + ": " + why);
}

// What the file system asks of direct reads, in bytes; 0 = it cannot. Kernels before 6.1 do not say: 4 KiB
// serves all drives.
size_t direct_alignment(int fd) {
#ifdef STATX_DIOALIGN
  struct statx info;
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &info) == 0 && (info.stx_mask & STATX_DIOALIGN))
    return std::max(info.stx_dio_mem_align, info.stx_dio_offset_align);
#endif
  return 4096;
}

}  // namespace

File::File(const std::string& path, bool direct)
    : path_(path), fd_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  if (fd_ < 0) throw_open_error(path, strerror(errno));
  struct stat info;
  if (fstat(fd_, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd_);
    throw_open_error(path, "not a regular file");
  }
  bytes_ = static_cast<uint64_t>(info.st_size);
  if (direct && !try_direct()) alignment_ = 1;
}

File::~File() {
  if (fd_ >= 0) close(fd_);
}

File::File(File&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      bytes_(other.bytes_),
      alignment_(other.alignment_) {}

// Some file systems take the flag and refuse the read, so only a read proves it.
bool File::try_direct() {
  const size_t alignment = direct_alignment(fd_);
  if (alignment == 0) return false;
  const int fd = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  if (fd < 0) return false;
  const Buffer block(alignment);
  if (read_fully(fd, block.data(), alignment, 0) < 0) {
    close(fd);
    return false;
  }
  close(std::exchange(fd_, fd));
  alignment_ = alignment;
  return true;
}

bool File::is_cached(uint64_t offset, uint64_t size) const {
  constexpr uint64_t kSamples = 32;
  uint8_t byte;
  const iovec target{&byte, 1};
  for (uint64_t i = 0; i < kSamples; ++i) {
    const auto at = static_cast<off_t>(offset + size / kSamples * i);
    if (preadv2(fd_, &target, 1, at, RWF_NOWAIT) != 1)
      return false;  // EAGAIN: it would have to read the drive
  }
  return true;
}

ssize_t read_fully(int fd, uint8_t* dst, size_t size, uint64_t offset) {
  size_t done = 0;
  while (done < size) {
    const ssize_t n = pread(fd, dst + done, size - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return done > 0 ? static_cast<ssize_t>(done) : -errno;
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  return static_cast<ssize_t>(done);
}

void throw_read_error(const std::string& path, uint64_t offset, ssize_t got, size_t wanted) {
  const std::string read = "read of " + std::to_string(wanted) + " bytes at offset " + std::to_string(offset);
  if (got < 0) throw IoError(path + ": " + read + " failed: " + strerror(static_cast<int>(-got)));
  throw IoError(path + ": " + read + " got " + std::to_string(got) +
                "; the file is truncated or still being written");
}

}  // namespace hotset::io
