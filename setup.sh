#!/usr/bin/env bash
# Makes .venv, whole: system packages where we may install them, the locked Python packages, and what DeepSpeed compiles.
# Safe to run again: with nothing to do it ends at once.
set -euo pipefail
cd "$(dirname "$0")"

readonly uv_version=0.13.8
readonly stamp=.venv/.made-from
readonly cache=${XDG_CACHE_HOME:-$HOME/.cache}/gilbreth

# PACKAGE:TEST, where TEST is a command, lib:NAME or header:PATTERN that the package brings.
readonly system_packages=(
    g++:g++                          # DeepSpeed compiles its shared-memory communication
    python3-dev:header:Python.h      # evdev (through LeRobot's pynput) is built from source
    ffmpeg:ffmpeg                    # LeRobot decodes videos with it
    libosmesa6:lib:libOSMesa.so      # robosuite renders with it where there is no GPU
    libegl1:lib:libEGL.so            # … and with this one where there is
    libgl1:lib:libGL.so.1            # opencv
    chromium:chromium                # the tests look at the report's page in it
    xvfb:Xvfb                        # … and press a person's keys on it
)

python=${PYTHON:-$(command -v python3.11 || command -v python3 || true)}

say() { printf '[setup] %s\n' "$*"; }

present() { # present TEST
    case $1 in
        header:*) [ -f "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/${1#header:}" ] ;;
        lib:*) PATH=$PATH:/sbin:/usr/sbin ldconfig -p | grep -qF "${1#lib:}" ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

install_system_packages() {
    local missing=() entry
    for entry in "${system_packages[@]}"; do
        present "${entry#*:}" || missing+=("${entry%%:*}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if command -v apt-get >/dev/null && as_root true 2>/dev/null; then
        say "installing ${missing[*]}"
        as_root apt-get update -qq
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    else
        say "missing and not yours to install: ${missing[*]}"
        say "ask an administrator for: apt-get install ${missing[*]}   (or use environment.yml with conda)"
    fi
}

find_uv() { # prints the path of uv, installing it beside our caches where there is none
    if command -v uv >/dev/null; then command -v uv; return; fi
    if [ ! -x "$cache/uv/bin/uv" ]; then
        "$python" -m ensurepip --version >/dev/null 2>&1 || as_root apt-get install -y -qq python3-venv >/dev/null
        "$python" -m venv "$cache/uv"
        "$cache/uv/bin/pip" install -q "uv==$uv_version"
    fi
    echo "$cache/uv/bin/uv"
}

main() {
    if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
        say "Python 3.11 is needed (LeRobot 0.4.4 and its pins); found: ${python:-none}"
        say "install it, or name it: PYTHON=/path/to/python3.11 make"
        exit 2
    fi
    if [[ $PWD =~ [[:space:]] ]]; then
        say "this folder's path has a space in it, and PyTorch cannot link extensions there: $PWD"
        say "move the project to a path without spaces; runs and data may be anywhere"
        exit 2
    fi
    local made_from
    made_from=$(cat requirements.lock pyproject.toml setup.sh | sha256sum)
    [ "$(cat "$stamp" 2>/dev/null)" != "$made_from" ] || return 0

    install_system_packages
    local uv
    uv=$(find_uv)
    say "installing $(wc -l <requirements.lock) locked packages into .venv"
    [ -x .venv/bin/python ] || "$uv" venv -q --python "$python" .venv
    "$uv" pip sync -q --python .venv/bin/python requirements.lock
    "$uv" pip install -q --python .venv/bin/python --no-deps --editable .
    # Every rank of every job imports these; without bytecode that takes twice as long (12 s for a LeRobot policy).
    say "compiling bytecode"
    env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
    # DeepSpeed compiles at first use; a stop signal that arrives meanwhile would leave half an extension behind.
    say "compiling DeepSpeed's shared-memory communication"
    DS_ACCELERATOR=cpu .venv/bin/python -m gilbreth_phase0.ranks compile
    echo "$made_from" >"$stamp"
    say "done"
}

main
