#!/usr/bin/env bash
# ARM boards' Pythons on this machine, under qemu-user, with the wheels that boards install. Prints the lab's folder.
#
#   lab=$(tools/arm_lab.sh)
#   $lab/cortex-a76/bin/python -c 'import onnxruntime'
#   $lab/cortex-a53/bin/edgekit agent --config board/agent.toml
#
# cortex-a53, -a72, -a76: 64 bits, Debian's Python with the wheels of numpy, onnxruntime, ai-edge-litert and all else that
# edgekit[ort,litert,api] asks for. cortex-a9: 32 bits, Debian's Python with Debian's numpy and Pillow, which have no wheels
# for it, nor has any runtime but our own. edgekit itself is the wheel that tools/build_wheels.sh makes. Each is a virtual environment whose `python` is a
# launcher: it calls qemu with this CPU, a root where /proc/cpuinfo says what such a board's does, and its own path as
# argv[0]. So sys.executable is the launcher, and children of an emulated process are emulated as well, without binfmt.
#
# Everything lies in ~/.cache/edgekit/arm (or $EDGEKIT_CACHE/arm) under names made of what it depends on. A time that was
# taken here is never a board's. -cpu max is not offered: LiteRT computes wrong int8 there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'arm_lab: %s\n' "$*" >&2; }
die() { printf 'tools/arm_lab.sh: %s\n' "$*" >&2; exit 2; }

mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
suite=bookworm
python=3.11 # Debian's in that suite
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
cache=${EDGEKIT_CACHE:-$HOME/.cache/edgekit}/arm
uv=$PWD/.venv/bin/uv

[ -x "$uv" ] || die "missing .venv: run tools/setup"
[ -e "$keyring" ] || die "missing $keyring: apt-get install debian-archive-keyring"
for program in apt-get dpkg-deb flock; do
    command -v "$program" > /dev/null || die "missing $program: this needs a Debian system or one like it"
done
qemu() { command -v "qemu-$1-static" || command -v "qemu-$1" || die "missing qemu-$1-static: run tools/setup"; }
qemu64=$(qemu aarch64)
qemu32=$(qemu arm)

short() { sha256sum | cut -c1-12; }
script=$(short < tools/arm_lab.sh)

# --- layers: made once, by their names ---------------------------------------------------------------------------------

# layer NAME FUNCTION ARGUMENTS...: the function fills a folder, which gets its name when it is whole.
layer() {
    local folder=$cache/$1
    [ -d "$folder" ] && return
    local filling
    filling=$(mktemp -d "$cache/.filling-XXXXXX")
    chmod 755 "$filling"
    if ! "$2" "$filling" "${@:3}"; then
        rm -rf "$filling"
        return 1
    fi
    mv "$filling" "$folder"
}

# debian_root FOLDER ARCHITECTURE PACKAGES...: unpack them and what they depend on. The lists and the state of packages are
# private, so that this machine's apt knows nothing of another architecture.
debian_root() {
    local apt=$1/apt options
    mkdir -p "$apt"/{lists,archives}/partial
    : > "$apt/status"
    printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$suite" > "$apt/sources.list"
    options=(
        -o "APT::Architecture=$2" -o "APT::Architectures=$2" -o APT::Sandbox::User= -o Acquire::Languages=none
        -o "Dir::State=$apt" -o "Dir::State::Lists=$apt/lists" -o "Dir::State::status=$apt/status"
        -o "Dir::Cache=$apt" -o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null
        -o APT::Update::Post-Invoke= -o Acquire::Retries=3
    )
    say "Debian $suite's ${*:3} for $2"
    apt-get "${options[@]}" -qq update || return
    apt-get "${options[@]}" -qq -y --no-install-recommends --download-only install "${@:3}" > /dev/null || return
    printf '%s\0' "$apt"/archives/*.deb | xargs -0 -n 1 -P 2 sh -c 'dpkg-deb -x "$1" "$0"' "$1" || return
    rm -rf "$apt"
    # What update-alternatives would link when the packages are installed.
    local library
    for library in blas lapack; do
        [ ! -d "$1/usr/lib/arm-linux-gnueabihf/$library" ] ||
            ln -s "$library/lib$library.so.3" "$1/usr/lib/arm-linux-gnueabihf/"
    done
}

wheels64() {
    say "aarch64 wheels of what edgekit[ort,litert,api] asks for"
    "$uv" pip install -q --target "$1" --python-version $python --python-platform aarch64-manylinux_2_28 --only-binary :all: \
        -r pyproject.toml --extra ort --extra litert --extra api
}

# Of 32 bits only what the commands themselves need, in Python alone; numpy and Pillow are Debian's.
wheels32() {
    "$uv" pip install -q --target "$1" --python-version $python --only-binary :all: click rich || return
    [ -z "$(find "$1" -name '*.so')" ] || die "click and rich came with a library of this machine's"
}

# --- the boards ----------------------------------------------------------------------------------------------------------

features64="fp asimd evtstrm crc32 cpuid"
features76="fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
features32="half thumb fastmult vfp edsp neon vfpv3 tls vfpd32"

# board LAB CPU QEMU ROOT PACKAGES PART FEATURES MODEL
board() {
    local home=$1/$2 entry
    local final=$lab/$2 # where it will be when it is whole
    mkdir -p "$home/bin" "$home/root/proc/device-tree" "$home/root/sys/devices/system/cpu"
    for entry in "$4"/*; do
        ln -s "$entry" "$home/root/"
    done
    for core in 0 1 2 3; do
        printf 'processor\t: %s\nBogoMIPS\t: 38.40\nFeatures\t: %s\nCPU implementer\t: 0x41\n' "$core" "$7"
        printf 'CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: %s\nCPU revision\t: 4\n\n' "$6"
    done > "$home/root/proc/cpuinfo"
    printf '%s\0' "$8" > "$home/root/proc/device-tree/model"
    printf '0-3\n' | tee "$home/root/sys/devices/system/cpu/possible" > "$home/root/sys/devices/system/cpu/present"

    mkdir -p "$home/lib/python$python/site-packages"
    printf '%s\n' "$5" > "$home/lib/python$python/site-packages/packages.pth"
    cp -r "$1/edgekit-$3"/. "$home/lib/python$python/site-packages"
    printf 'home = %s\ninclude-system-site-packages = false\n' "$4/usr/bin" > "$home/pyvenv.cfg"
    printf '#!/bin/sh\n%s\nexec %s -cpu %s -L %s -0 %s %s "$@"\n' \
        'unset LD_PRELOAD LD_LIBRARY_PATH PYTHONHOME # the outer machine'"'"'s' \
        "$qemu_now" "$2" "$final/root" "$final/bin/python" "$4/usr/bin/python$python" > "$home/bin/python"
    printf '#!%s\nfrom edgekit.cli.main import main\n\nmain()\n' "$final/bin/python" > "$home/bin/edgekit"
    chmod +x "$home/bin/python" "$home/bin/edgekit"
}

# unpack LAB MACHINE PLATFORM: pip itself decides whether the wheel's tags are this platform's.
unpack() {
    .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-compile --no-index --only-binary :all: \
        --target "$1/edgekit-$2" --platform "$3" --python-version $python "$wheels"/edgekit-*"_$2.whl"
}

lab_of_boards() {
    unpack "$1" aarch64 manylinux_2_17_aarch64 || return
    unpack "$1" armv7l linux_armv7l || return
    local packages64=$cache/$wheels64 packages32=$cache/$wheels32
    qemu_now=$qemu64
    board "$1" cortex-a53 aarch64 "$cache/$root64" "$packages64" 0xd03 "$features64" "Raspberry Pi 3 Model B Rev 1.2"
    board "$1" cortex-a72 aarch64 "$cache/$root64" "$packages64" 0xd08 "$features64" "Raspberry Pi 4 Model B Rev 1.4"
    board "$1" cortex-a76 aarch64 "$cache/$root64" "$packages64" 0xd0b "$features76" "Raspberry Pi 5 Model B Rev 1.0"
    qemu_now=$qemu32
    board "$1" cortex-a9 armv7l "$cache/$root32" "$packages32" 0xc09 "$features32" "Xilinx PYNQ-Z1"
    ln -s "$cache/$root32/usr/lib/python3/dist-packages"/{numpy,PIL} "$1/cortex-a9/lib/python$python/site-packages/"
    rm -r "$1"/edgekit-*
}

mkdir -p "$cache"
exec 9> "$cache/lock"
flock 9
rm -rf "$cache"/.filling-* # of one that was killed
find "$cache" -maxdepth 1 -name 'lab-*' -mtime +7 -exec rm -rf {} +

root64=root-arm64-$script
root32=root-armhf-$script
wheels64=wheels-aarch64-$(cat pyproject.toml tools/arm_lab.sh | short)
wheels32=wheels-armv7l-$script
sources=(edgekit device_profiles firmware_stubs models CMakeLists.txt pyproject.toml README.md LICENSE tools/build_wheels.sh tools/finish_wheel.py)
content=$(find "${sources[@]}" -type f -not -path '*/__pycache__/*' -print0 | sort -z | xargs -0 sha256sum | short)
lab=$cache/lab-$(printf '%s\n' "$content" "$root64" "$wheels64" "$qemu64" | short)

if [ ! -d "$lab" ]; then
    wheels=$(mktemp -d)
    trap 'rm -rf "$wheels"' EXIT
    say "make $lab"
    DIST=$wheels tools/build_wheels.sh aarch64 armv7l >&2 &
    jobs=($!)
    layer "$root64" debian_root arm64 "python$python" libstdc++6 &
    jobs+=($!)
    layer "$root32" debian_root armhf "python$python" python3-numpy python3-pil &
    jobs+=($!)
    layer "$wheels64" wheels64 &
    jobs+=($!)
    layer "$wheels32" wheels32 &
    jobs+=($!)
    failed=
    for job in "${jobs[@]}"; do
        wait "$job" || failed=yes
    done
    [ -z "$failed" ] || die "the lab could not be made: what failed stands above"
    layer "${lab##*/}" lab_of_boards
fi
touch "$lab" # used today
printf '%s\n' "$lab"
