#include "base/memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "base/error.h"

namespace hotset {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;  // PMD size of x86-64 and of ARM64 with 4 KiB pages

size_t page_bytes() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

[[noreturn]] void throw_out_of_memory(size_t bytes) {
  std::string message = "cannot map " + std::to_string(bytes) + " bytes of memory";
  if (errno != 0) message += std::string(": ") + strerror(errno);
  throw OutOfMemory(message);
}

uint8_t* map_anonymous(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw_out_of_memory(bytes);
  return static_cast<uint8_t*>(p);
}

// mmap aligns to pages only: map one huge page more than needed and give back what lies outside.
uint8_t* map_aligned(size_t bytes) {
  uint8_t* p = map_anonymous(bytes + kHugePage);
  const size_t head = (kHugePage - reinterpret_cast<uintptr_t>(p) % kHugePage) % kHugePage;
  if (head > 0) munmap(p, head);
  munmap(p + head + bytes, kHugePage - head);
  return p + head;
}

[[noreturn]] void throw_io_error(const char* action, const char* path) {
  throw IoError(std::string("cannot ") + action + " " + path + ": " + strerror(errno));
}

}  // namespace

Buffer::Buffer(size_t bytes, bool huge_pages) : size_(bytes) {
  if (bytes == 0) return;
  errno = 0;
  if (bytes > SIZE_MAX / 2) throw_out_of_memory(bytes);
  mapped_ = (bytes + page_bytes() - 1) / page_bytes() * page_bytes();
  data_ = mapped_ >= kHugePage ? map_aligned(mapped_) : map_anonymous(mapped_);
  // Only a hint: kernels without transparent huge pages refuse it, and small pages serve too.
  if (huge_pages && mapped_ >= kHugePage) madvise(data_, mapped_, MADV_HUGEPAGE);
}

Buffer::~Buffer() {
  if (data_ != nullptr) munmap(data_, mapped_);
}

bool Buffer::release_from(size_t offset) {
  const size_t begin = (offset + page_bytes() - 1) / page_bytes() * page_bytes();
  return begin >= mapped_ || madvise(data_ + begin, mapped_ - begin, MADV_DONTNEED) == 0;
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      mapped_(std::exchange(other.mapped_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(mapped_, other.mapped_);
  return *this;
}

MappedFile::MappedFile(const char* path) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw_io_error("open", path);
  struct stat info;
  const bool known = fstat(fd, &info) == 0;
  if (!known || !S_ISREG(info.st_mode)) {
    close(fd);
    throw IoError(std::string("cannot map ") + path + ": not a regular file");
  }
  size_ = static_cast<size_t>(info.st_size);
  void* p = size_ == 0 ? nullptr : mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
  const int error = errno;
  close(fd);  // the mapping keeps the file
  errno = error;
  if (p == MAP_FAILED) throw_io_error("map", path);
  data_ = static_cast<const uint8_t*>(p);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

}  // namespace hotset
