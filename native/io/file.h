// An open file, how it may be read, and the errors that name it.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace hotset::io {

class File {
 public:
  // Opens a regular file for reading; with `direct`, past the page cache if a trial read works. Throws
  // IoError.
  File(const std::string& path, bool direct);
  ~File();
  File(File&& other) noexcept;
  File& operator=(File&&) = delete;

  const std::string& path() const { return path_; }
  int fd() const { return fd_; }
  uint64_t bytes() const { return bytes_; }
  size_t alignment() const { return alignment_; }  // of offset, address and size; 1 = buffered
  // True if samples all over [offset, offset + size) lie in the page cache.
  bool is_cached(uint64_t offset, uint64_t size) const;

 private:
  bool try_direct();

  std::string path_;
  int fd_ = -1;
  uint64_t bytes_ = 0;
  size_t alignment_ = 1;
};

// pread(2) that only stops short at the end of the file. Returns bytes read, or -errno.
ssize_t read_fully(int fd, uint8_t* dst, size_t size, uint64_t offset);

// "PATH: read of WANTED bytes at OFFSET got GOT" or the error of -errno.
[[noreturn]] void throw_read_error(const std::string& path, uint64_t offset, ssize_t got, size_t wanted);

}  // namespace hotset::io
