"""Find out what machine this is: the `host` profile, from /proc, /sys and the installed packages. Runs no benchmark."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgekit.core import profile as profiles
from edgekit.core.figure import Figure, unknown
from edgekit.core.profile import Backend, Costs, Cpu, Memory, Power, Profile
from edgekit.runtime.power.hwmon import PREFERRED, channels
from edgekit.runtime.sysfs import number_or_none, text_or_none

# onnxruntime version -> newest opset and IR it loads. Tried with 1.20.1, 1.23.2 and 1.32.0; a version between two of
# them is taken for the older one.
ONNXRUNTIME_CEILINGS = (((1, 32), 28, 14), ((1, 23), 23, 11), ((1, 20), 21, 10))

# Words in the device tree's model -> the profile of that board. The first that fits holds.
BOARDS = (
    ("raspberry pi zero 2", "raspberrypizero2w"),
    ("raspberry pi 3 model b", "raspberrypi3b"),
    ("raspberry pi 4 model b", "raspberrypi4b"),
    ("raspberry pi 5", "raspberrypi5"),
    ("jetson orin nano", "jetson-orin-nano"),
    ("jetson xavier nx", "jetson-xavier-nx"),
    ("jetson nano", "jetson-nano"),
    ("pynq-z1", "pynq-z1"),
    ("pynq-z2", "pynq-z2"),
)

_CORES_ARM = {
    ("0x41", "0xc09"): "Cortex-A9",
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x4e", "0x004"): "NVIDIA Carmel",
}
_FEATURES_ARM = {
    "neon": "neon",
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fp16",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
}
_FEATURES_X86 = {
    "sse4_1": "sse4.1",
    "popcnt": "popcnt",
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx_vnni": "avxvnni",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512_vnni": "avx512vnni",
    "avx512_vpopcntdq": "avx512vpopcntdq",
}


def find_profile(name_or_path: str, root: Path = Path("/")) -> Profile:
    """`host` detected under `root`, or what core.profile.profile finds. Raises BadInput listing the known names."""
    if name_or_path == profiles.HOST:
        return detect_host(root)
    return profiles.profile(name_or_path)


def detect_host(
    root: Path = Path("/"),
    installed: Callable[[str], str | None] | None = None,
    today: str | None = None,
) -> Profile:
    """The machine under `root` as a profile called `host`; its figures are measured or unknown.

    installed: gives a package's version, None where it is missing. today: ISO date that stands in the figures.
    """
    when = date.today().isoformat() if today is None else today  # noqa: DTZ011  (the user's own day)
    model = _tree_model(root)
    board = board_profile(model)
    cpu = _cpu(root, when)
    machine = model or cpu.model
    backends = _backends(cpu, board, installed or installed_version)
    return Profile(
        name=profiles.HOST,
        title=f"This machine: {machine}" + (f" (profile {board})" if board else ""),
        cpu=cpu,
        memory=Memory(ram_mb=_ram_mb(root, when, machine), bandwidth_gb_s=unknown("GB/s")),
        os=_os(root),
        python=(f"{sys.version_info.major}.{sys.version_info.minor}",),
        backends=backends,
        cost=Costs(cpu.cores, {fmt: unknown("MAC/s") for fmt in profiles.fast_formats(backends)}),
        power=Power(sensor=find_sensor(root)),
    )


def board_profile(model: str | None) -> str | None:
    """The shipped profile of the board whose device tree says `model`; None: not one of ours."""
    lowered = (model or "").lower()
    return next((name for words, name in BOARDS if words in lowered), None)


def find_sensor(root: Path) -> str:
    """The power sensor this machine seems to have; opening it says whether it may be read."""
    if any(root.glob("sys/bus/i2c/drivers/ina3221*/*-*")):
        return "ina3221"
    if board_profile(_tree_model(root)) == "raspberrypi5":
        return "rpi5_pmic"
    if any(root.glob("sys/class/powercap/intel-rapl:*")):
        return "rapl"
    chips = [channel for channel in channels(root / "sys/class/hwmon") if channel.chip in PREFERRED]
    return "hwmon" if chips else "none"


def installed_version(package: str) -> str | None:
    """The installed version of a package, read from its metadata: nothing is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def onnxruntime_ceiling(installed: str) -> tuple[int | None, int | None]:
    """Newest opset and IR version that onnxruntime loads; None, None for versions older than we tried."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", installed)[:2])
    for since, opset, ir in ONNXRUNTIME_CEILINGS:
        if numbers >= since:
            return opset, ir
    return None, None


def _tree_model(root: Path) -> str | None:
    paths = ("proc/device-tree/model", "sys/firmware/devicetree/base/model")
    return next((text for path in paths if (text := text_or_none(root / path))), None)


def _cpu(root: Path, when: str) -> Cpu:
    text = text_or_none(root / "proc/cpuinfo") or ""
    keys = _keys(text)
    cores = len(re.findall(r"^processor\s*:", text, re.MULTILINE)) or 1
    if "flags" in keys:
        model, isa = keys.get("model name", "unknown x86 processor"), "x86-64"
        features = _translated(keys["flags"], _FEATURES_X86)
    else:
        core = _CORES_ARM.get((keys.get("CPU implementer", ""), keys.get("CPU part", "")))
        model = core or keys.get("model name") or keys.get("Model") or "unknown processor"
        features = _translated(keys.get("Features", ""), _FEATURES_ARM)
        isa = _arm_isa(keys, features)
    return Cpu(model, cores, isa, features, _clock_ghz(root, keys, when, model))


def _arm_isa(keys: Mapping[str, str], features: tuple[str, ...]) -> str:
    if "asimd" not in keys.get("Features", "").split():
        return "armv7-a" if "Features" in keys else "unknown"
    return "armv8.2-a" if {"dotprod", "fp16"} & set(features) else "armv8-a"


def _keys(text: str) -> dict[str, str]:
    """The first value of each key of /proc/cpuinfo, as it is written there."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    return found


def _translated(words: str, names: Mapping[str, str]) -> tuple[str, ...]:
    present = set(words.split())
    return tuple(dict.fromkeys(ours for theirs, ours in names.items() if theirs in present))


def _clock_ghz(root: Path, keys: Mapping[str, str], when: str, model: str) -> Figure:
    khz = number_or_none(root / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    if khz:
        return Figure(khz / 1e6, "GHz", "measured", when, f"cpufreq's maximum, {model}")
    try:
        mhz = float(keys.get("cpu MHz", ""))
    except ValueError:
        return unknown("GHz")
    return (
        Figure(mhz / 1e3, "GHz", "measured", when, f"/proc/cpuinfo, {model}") if mhz > 0 else unknown("GHz")
    )


def _ram_mb(root: Path, when: str, machine: str) -> Figure:
    match = re.search(r"^MemTotal:\s*(\d+) kB", text_or_none(root / "proc/meminfo") or "", re.MULTILINE)
    if match is None or int(match[1]) == 0:
        return unknown("MB")
    return Figure(round(int(match[1]) / 1024), "MB", "measured", when, f"/proc/meminfo, {machine}")


def _os(root: Path) -> tuple[str, ...]:
    match = re.search(
        r'^PRETTY_NAME="?([^"\n]+)"?', text_or_none(root / "etc/os-release") or "", re.MULTILINE
    )
    return (match[1],) if match else ()


def _backends(cpu: Cpu, board: str | None, installed: Callable[[str], str | None]) -> tuple[Backend, ...]:
    x86 = cpu.isa == "x86-64"
    activation = "uint8" if x86 else "int8"
    fast = _fast_formats(cpu, board)
    found: list[Backend] = []
    gpu = installed("onnxruntime-gpu")
    ort = gpu or installed("onnxruntime")
    if ort is not None:
        opset, ir = onnxruntime_ceiling(ort)
        found.append(
            Backend("onnxruntime", ort, opset, ir, _providers(board, gpu is not None), fast, activation)
        )
    for name, package in (("litert", "ai-edge-litert"), ("tflite-runtime", "tflite-runtime")):
        interpreter = installed(package)
        if interpreter is not None:
            found.append(Backend(name, interpreter, fast_formats=fast, int8_activation="int8"))
    native = ("float32", "binary") if cpu.isa == "armv7-a" else ("binary",)
    return (*found, Backend("native", fast_formats=native))


def _providers(board: str | None, gpu: bool) -> tuple[str, ...]:
    if not gpu:
        return ("CPUExecutionProvider",)
    tensorrt = ("TensorrtExecutionProvider",) if (board or "").startswith("jetson") else ()
    return (*tensorrt, "CUDAExecutionProvider", "CPUExecutionProvider")


def _fast_formats(cpu: Cpu, board: str | None) -> tuple[str, ...]:
    """A known board's own answer; else int8 where the processor has 8-bit products worth having."""
    if board is not None:
        return profiles.profile(board).backends[0].fast_formats
    if {"avx2", "avxvnni", "avx512vnni"} & set(cpu.features) or cpu.isa.startswith("armv8"):
        return ("float32", "int8")
    return ("float32",)
