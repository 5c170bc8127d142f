#!/usr/bin/env bash
# Makes .venv and installs what a lock file pins: scripts/setup.sh requirements.lock|requirements-gpu.lock
#
# PYTHON       the interpreter to use; without it, the first of python3.11 … python3.14, python3 that is 3.11 or later
# TORCH_INDEX  where PyTorch comes from. Without it, pip is asked first what its own settings offer; on Linux without
#              a GPU, if that is a CUDA build (gigabytes), the CPU index below is taken instead. TORCH_INDEX=none
#              takes whatever pip offers.
set -euo pipefail
cd "$(dirname "$0")/.."

lock=${1:?usage: scripts/setup.sh requirements.lock|requirements-gpu.lock}
cpu_index=https://download.pytorch.org/whl/cpu
pinned_pip=pip==26.3  # an older one downloads a whole wheel to read what it needs
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 1; }

# The copy of the lock file inside .venv is the mark of a finished set-up.
mark=.venv/$lock
if cmp -s "$lock" "$mark" && .venv/bin/python -c ""; then touch "$mark"; exit 0; fi

suits() { "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3.14 python3}; do
    if suits "$candidate"; then echo "$candidate"; return; fi
  done
  fail "no Python 3.11 or later with venv found (tried: ${PYTHON:-python3.11 to python3.14, python3});" \
    "install one, or name it: make setup PYTHON=/path/to/python"
}

# faiss-cpu and faiss-gpu ship the same folder: the kind of an environment never changes, it is made anew.
make_venv() {
  local python clear=--clear
  if [ -x .venv/bin/python ] && suits .venv/bin/python; then
    clear=
    for other in .venv/requirements*.lock; do
      if [ -e "$other" ] && [ "$other" != "$mark" ]; then clear=--clear; fi
    done
  fi
  rm -f .venv/requirements*.lock
  if [ -z "$clear" ] && [ -z "${PYTHON:-}" ]; then return; fi
  python=$(find_python)
  say "making .venv with $("$python" --version)"
  "$python" -m venv $clear .venv
}

installed_torch() {
  .venv/bin/python -c 'import importlib.metadata as m; print("torch==" + m.version("torch").partition("+")[0])' 2>/dev/null
}

# Prints cpu or cuda: the build that pip's own settings offer. Reads metadata only.
offered_build() {
  .venv/bin/python -m pip install --dry-run --no-deps --ignore-installed --use-feature=fast-deps --quiet --report - \
    "$torch" 2>"$log" | .venv/bin/python -m scripts.torch_build 2>/dev/null
}

# The cause stands first in what pip says; what follows from it, last.
first_error() { { grep -oE "Failed to (resolve|establish)[^(\"]*|ERROR.*" "$log" || echo "pip failed"; } | head -n 1; }

install_torch_from() {
  say "$torch comes from $1"
  .venv/bin/python -m pip install $quiet --no-deps --retries 2 --index-url "$1" "$torch" 2>"$log" ||
    fail "$torch cannot be had from $1 ($(first_error)); choose another index, make setup TORCH_INDEX=URL," \
      "or take what pip offers by itself (a CUDA build, gigabytes), make setup TORCH_INDEX=none"
}

choose_torch() {
  local build
  if [ "$(installed_torch)" = "$torch" ]; then return; fi
  if [ "${TORCH_INDEX:-}" = none ]; then return; fi
  if [ -n "${TORCH_INDEX:-}" ]; then install_torch_from "$TORCH_INDEX"; return; fi
  if [ "$(uname -s)" != Linux ]; then return; fi
  build=$(offered_build) ||
    fail "pip cannot find $torch ($(first_error)); check network, proxy and pip's settings, or name an index:" \
      "make setup TORCH_INDEX=URL"
  case $lock:$build in
    requirements.lock:cuda)
      say "no GPU here and pip offers a CUDA build of PyTorch: taking the CPU build instead"
      install_torch_from "$cpu_index" ;;
    requirements-gpu.lock:cpu)
      say "warning: pip's settings offer a CPU build of PyTorch, the GPU will serve FAISS alone;" \
        "name another index to change that: make setup GPU=1 TORCH_INDEX=URL" ;;
  esac
}

torch=$(grep '^torch==' "$lock")
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if [ "$lock" = requirements.lock ]; then size="2 GB"; else size="8 GB"; fi
if [ -t 2 ]; then quiet=; else quiet=-qq; fi

make_venv
.venv/bin/python -m pip install -qq "$pinned_pip" || fail "cannot install $pinned_pip into .venv"
choose_torch
say "installing the $(grep -c == "$lock") packages of $lock: a minute or two, about $size"
.venv/bin/python -m pip install $quiet -r "$lock" || fail "the packages of $lock did not install; the reason stands above"
.venv/bin/python -m pip check >"$log" || fail "the packages do not fit together: $(head -n 1 "$log")"
cp "$lock" "$mark"
say "done; . .venv/bin/activate"
