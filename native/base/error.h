// Errors of the native core. bind/ maps each class to the Python exception of the same meaning.
#pragma once

#include <stdexcept>
#include <string>

namespace hotset {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct InvalidArgument : Error {
  using Error::Error;
};  // -> hotset.errors.UsageError
struct InvalidWeight : Error {
  using Error::Error;
};  // -> hotset.errors.FormatError
struct IoError : Error {
  using Error::Error;
};  // -> hotset.errors.StorageError: path, offset, got, wanted
struct OutOfMemory : Error {
  using Error::Error;
};  // -> hotset.errors.MemoryBudgetError: bytes asked, what for
struct UnsupportedIsa : Error {
  using Error::Error;
};  // -> hotset.errors.HostError
struct Cancelled : Error {
  using Error::Error;
};  // step stopped between layers; nothing was committed

}  // namespace hotset
