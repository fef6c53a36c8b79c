#!/usr/bin/env bash
# Builds the native tests for aarch64 with a cross compiler and runs them under qemu's user emulation.
# Usage: scripts/test_arm.sh BUILD_FOLDER
set -euo pipefail
build=$1
target=aarch64-linux-gnu

missing=()
command -v $target-g++ >/dev/null || missing+=(g++-$target)
command -v qemu-aarch64 >/dev/null || missing+=(qemu-user)
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "test-arm: missing ${missing[*]}; as root: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  echo "test-arm: running as root, so installing with apt-get: ${missing[*]}"
  DEBIAN_FRONTEND=noninteractive
  export DEBIAN_FRONTEND
  apt-get update -qq
  apt-get install -y -qq "${missing[@]}" >/dev/null
fi

# HOTSET_LIBURING_HEADER=OFF: the header found would be the host's, the library of the wrong machine.
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DHOTSET_NATIVE_TESTS=ON -DHOTSET_LIBURING_HEADER=OFF \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$target-g++ \
  "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-cpu;max;-L;/usr/$target"
cmake --build "$build"
ctest --test-dir "$build" --output-on-failure --no-tests=error
