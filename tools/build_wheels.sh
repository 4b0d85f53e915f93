#!/usr/bin/env bash
# Wheels of edgekit for the machines that boards are: dist/edgekit-VERSION-py3-none-PLATFORM.whl.
#
#   tools/build_wheels.sh [x86_64|aarch64|armv7l]...        all three where none is named
#   DIST=FOLDER tools/build_wheels.sh                       another folder than dist/
#
# The C library is compiled with Debian's cross compilers, which tools/setup installs; scikit-build-core, CMake and ninja
# come from PyPI into .venv-wheels. The same commit gives the same bytes wherever it lies: SOURCE_DATE_EPOCH is the
# commit's date unless it is set. tools/finish_wheel.py checks every library and says which systems it runs on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'build_wheels: %s\n' "$*" >&2; }
die() { printf 'tools/build_wheels.sh: %s\n' "$*" >&2; exit 2; }

compiler() {
    case "$1" in
        x86_64) prefix=x86_64-linux-gnu ;;
        aarch64) prefix=aarch64-linux-gnu ;;
        armv7l) prefix=arm-linux-gnueabihf ;;
        *) die "wanted x86_64, aarch64 or armv7l, got '$1'" ;;
    esac
    command -v "$prefix-gcc" || { [ "$(uname -m)" = "$1" ] && command -v cc; } ||
        die "missing $prefix-gcc: run tools/setup, or apt-get install gcc-${prefix//_/-}"
}

machines=("$@")
[ $# != 0 ] || machines=(x86_64 aarch64 armv7l)
for machine in "${machines[@]}"; do
    compiler "$machine" > /dev/null
done
command -v readelf > /dev/null || die "missing readelf: apt-get install binutils"
[ -x .venv/bin/python ] || die "missing .venv: run tools/setup"

env=.venv-wheels
packages=(scikit-build-core==1.1.2 cmake==4.1.0 ninja==1.13.0)
if [ "$(cat $env/edgekit-setup 2> /dev/null)" != "${packages[*]}" ]; then
    say "make $env with ${packages[*]}"
    .venv/bin/python -m venv --clear $env
    $env/bin/python -m pip install -qq --disable-pip-version-check "${packages[@]}"
    printf '%s\n' "${packages[*]}" > $env/edgekit-setup
fi

SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2> /dev/null || echo 315532800)}
export SOURCE_DATE_EPOCH PATH="$PWD/$env/bin:$PATH"

# One machine's wheel; what it says goes out whole, so that two at a time do not mix.
build() (
    machine=$1
    rough=$(mktemp -d)
    trap 'rm -rf "$rough"' EXIT
    # The build folder is kept, so that a changed C file compiles alone. A platform of its own in the environment is how
    # sysconfig, and with it the wheel's tag, learns of the other machine.
    if ! _PYTHON_HOST_PLATFORM=linux-$machine $env/bin/python -m pip wheel . --quiet --disable-pip-version-check --no-deps \
        --no-build-isolation --wheel-dir "$rough" \
        --config-settings="build-dir=build/wheel-$machine" \
        --config-settings="cmake.define.CMAKE_C_COMPILER=$(compiler "$machine")" \
        --config-settings=cmake.define.CMAKE_SYSTEM_NAME=Linux \
        --config-settings="cmake.define.CMAKE_SYSTEM_PROCESSOR=$machine" > "$rough/log" 2>&1; then
        cat "$rough/log" >&2
        die "the wheel for $machine could not be built"
    fi
    .venv/bin/python tools/finish_wheel.py "$machine" "$rough"/edgekit-*.whl "${DIST:-dist}"
)

running=()
for machine in "${machines[@]}"; do
    build "$machine" &
    running+=($!)
done
failed=
for process in "${running[@]}"; do
    wait "$process" || failed=yes
done
[ -z "$failed" ] || exit 3
