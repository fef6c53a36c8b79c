// The whole test harness: CHECK counts failures and keeps going; main ends with `return check::report();`.
#pragma once

#include <cstdio>

namespace check {

inline constexpr int kShown = 20;  // further failures are only counted
inline int failures = 0;

inline bool that(bool ok, const char* what, const char* file, int line) {
  if (!ok && ++failures <= kShown) std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
  return ok;
}

inline int report() {
  if (failures) std::fprintf(stderr, "%d checks failed\n", failures);
  return failures ? 1 : 0;
}

}  // namespace check

// True if the condition holds, so that a caller can add detail: if (!CHECK(a == b)) fprintf(...).
#define CHECK(...) check::that(static_cast<bool>(__VA_ARGS__), #__VA_ARGS__, __FILE__, __LINE__)

#define CHECK_THROWS(Exception, ...)                                             \
  do {                                                                           \
    bool thrown = false;                                                         \
    try {                                                                        \
      (void)(__VA_ARGS__);                                                       \
    } catch (const Exception&) {                                                 \
      thrown = true;                                                             \
    }                                                                            \
    check::that(thrown, #__VA_ARGS__ " throws " #Exception, __FILE__, __LINE__); \
  } while (0)
