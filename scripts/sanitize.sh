#!/usr/bin/env bash
# Runs the native tests under the sanitizers. Usage: scripts/sanitize.sh BUILD_ROOT
set -euo pipefail
root=$1

run() {  # run NAME SANITIZERS
  cmake -S . -B "$root/$1" -G Ninja -DCMAKE_BUILD_TYPE=Release -DHOTSET_NATIVE_TESTS=ON -DHOTSET_FUZZ=ON \
    "-DHOTSET_SANITIZE=$2"
  cmake --build "$root/$1"
  ctest --test-dir "$root/$1" --output-on-failure --no-tests=error
}

export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
run asan address,undefined
run tsan thread
