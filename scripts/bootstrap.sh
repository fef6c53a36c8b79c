#!/usr/bin/env bash
# Makes the virtual environment that the Makefile works in, and checks what the build needs from the system.
# Usage: scripts/bootstrap.sh VENV. PYTHON names another interpreter.
set -euo pipefail
venv=$1

apt_install() {  # as root on a system with apt only; says what it does, and may fail
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
  echo "bootstrap: running as root, so installing with apt-get: $*"
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y -qq "$@" >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq "$@" >/dev/null; }
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "bootstrap: no Python 3.11 or newer found; install one or set PYTHON=/path/to/python3" >&2
  return 1
}

make_venv() {
  local python
  python=$(find_python)
  "$python" -c 'import ensurepip' 2>/dev/null || apt_install python3-venv ||
    { echo "bootstrap: $python cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
  "$python" -m venv "$venv"
}

check_compiler() {
  local cxx=${CXX:-c++}
  if ! echo 'int main() {}' | "$cxx" -std=c++20 -x c++ -fsyntax-only - 2>/dev/null; then
    echo "bootstrap: '$cxx' is no C++20 compiler; on Debian: apt-get install g++ (or set CXX)" >&2
    exit 1
  fi
  echo '#include <liburing.h>' | "$cxx" -x c++ -E - >/dev/null 2>&1 || apt_install liburing-dev ||
    echo "bootstrap: no liburing headers, so reads will go through pread threads; on Debian: apt-get install liburing-dev"
}

check_compiler
[ -x "$venv/bin/python" ] || make_venv
