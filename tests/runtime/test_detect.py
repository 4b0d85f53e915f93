from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from edgekit.core.cost import Work, predict
from edgekit.core.errors import BadInput
from edgekit.core.profile import Profile, profile_from
from edgekit.runtime.detect import detect_host, find_profile, installed_version, onnxruntime_ceiling

Tree = Mapping[str, str]


def arm_cpuinfo(cores: int, part: str, features: str, implementer: str = "0x41") -> str:
    one = (
        f"Features\t: {features}\nCPU implementer\t: {implementer}\nCPU architecture: 8\nCPU part\t: {part}\n"
    )
    return "".join(f"processor\t: {i}\nBogoMIPS\t: 108.00\n{one}\n" for i in range(cores))


X86: Tree = {
    "proc/cpuinfo": "".join(
        f"processor\t: {i}\nmodel name\t: Some Xeon @ 2.00GHz\ncpu MHz\t\t: 2600.5\n"
        "flags\t\t: fpu sse4_1 popcnt fma avx2 avx512f avx512_vnni\n\n"
        for i in range(2)
    ),
    "proc/meminfo": "MemTotal:       24684760 kB\nMemAvailable: 1 kB\n",
    "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
}
PI5: Tree = {
    "proc/cpuinfo": arm_cpuinfo(4, "0xd0b", "fp asimd aes asimdhp cpuid asimdrdm lrcpc dcpop asimddp")
    + "Model\t\t: Raspberry Pi 5 Model B Rev 1.0\n",
    "proc/meminfo": "MemTotal:        8256304 kB\n",
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "2400000\n",
}
ORIN: Tree = {
    "proc/cpuinfo": arm_cpuinfo(6, "0xd42", "fp asimd asimdhp asimddp"),
    "proc/meminfo": "MemTotal:        7802080 kB\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in1_label": "VDD_IN\n",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1510400\n",
}
PYNQ: Tree = {
    "proc/cpuinfo": "".join(
        f"processor\t: {i}\nmodel name\t: ARMv7 Processor rev 0 (v7l)\n"
        "Features\t: half thumb fastmult vfp neon vfpv3\nCPU implementer\t: 0x41\n"
        "CPU architecture: 7\nCPU part\t: 0xc09\n\n"
        for i in range(2)
    ),
    "proc/device-tree/model": "TUL PYNQ-Z2\0",
}


@pytest.fixture
def detect(tmp_path: Path) -> Callable[..., Profile]:
    def detected(files: Tree, **packages: str) -> Profile:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        versions = {name.replace("_", "-"): version for name, version in packages.items()}
        return detect_host(tmp_path, versions.get, "2026-01-02")

    return detected


def test_an_x86_machine_is_named_with_its_processor_and_wants_uint8_activations(
    detect: Callable[..., Profile],
) -> None:
    host = detect(X86, onnxruntime="1.32.0")

    assert (host.name, host.title) == ("host", "This machine: Some Xeon @ 2.00GHz")
    assert (host.cpu.cores, host.cpu.isa) == (2, "x86-64")
    assert host.cpu.features == ("sse4.1", "popcnt", "avx2", "fma", "avx512f", "avx512vnni")
    assert host.cpu.clock_ghz.value == 2.6005
    assert host.memory.ram_mb.value == 24106
    assert host.os == ("Debian GNU/Linux 12 (bookworm)",)
    assert host.power.sensor == "rapl"
    ort = host.backend("onnxruntime")
    assert (ort.version, ort.max_opset, ort.max_ir) == ("1.32.0", 28, 14)
    assert (ort.int8_activation, ort.fast_formats) == ("uint8", ("float32", "int8"))
    assert ort.providers == ("CPUExecutionProvider",)


def test_a_raspberry_pi_5_is_recognised_and_still_called_host(detect: Callable[..., Profile]) -> None:
    host = detect(PI5, onnxruntime="1.32.0", ai_edge_litert="2.3.0")

    assert host.name == "host"
    assert host.title == "This machine: Raspberry Pi 5 Model B Rev 1.0 (profile raspberrypi5)"
    assert (host.cpu.model, host.cpu.cores, host.cpu.isa) == ("Cortex-A76", 4, "armv8.2-a")
    assert host.cpu.features == ("neon", "dotprod", "fp16")
    assert host.cpu.clock_ghz.value == 2.4
    assert host.power.sensor == "rpi5_pmic"
    assert [backend.name for backend in host.backends] == ["onnxruntime", "litert", "native"]
    assert host.backend("onnxruntime").int8_activation == "int8"


def test_a_jetson_with_the_gpu_package_prefers_its_own_providers(detect: Callable[..., Profile]) -> None:
    host = detect(ORIN, onnxruntime_gpu="1.23.0")

    assert host.title.endswith("(profile jetson-orin-nano)")
    assert host.power.sensor == "ina3221"
    ort = host.backend("onnxruntime")
    assert (ort.max_opset, ort.max_ir) == (23, 11)
    assert ort.providers == (
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    )


def test_a_32_bit_board_has_our_own_backend_only(detect: Callable[..., Profile]) -> None:
    host = detect(PYNQ)

    assert host.title == "This machine: TUL PYNQ-Z2 (profile pynq-z2)"
    assert (host.cpu.model, host.cpu.isa, host.cpu.features) == ("Cortex-A9", "armv7-a", ("neon",))
    assert [backend.name for backend in host.backends] == ["native"]


@pytest.mark.parametrize("files", [X86, PI5, ORIN, PYNQ, {}], ids=["x86", "pi5", "orin", "pynq", "nothing"])
def test_every_figure_is_measured_here_and_today_or_unknown(
    detect: Callable[..., Profile], files: Tree
) -> None:
    host = detect(files, onnxruntime="1.32.0")

    for path, figure in host.figures():
        if figure.value is not None:
            assert (figure.provenance, figure.when) == ("measured", "2026-01-02"), path
            assert figure.on, path
    assert predict(host, (Work("Conv", "int8", 1, 1, 1),)).value is None
    assert profile_from(host.to_json(), "json") == host


def test_an_empty_tree_gives_a_profile_of_unknowns(detect: Callable[..., Profile]) -> None:
    host = detect({})

    assert (host.cpu.model, host.cpu.isa, host.cpu.cores) == ("unknown processor", "unknown", 1)
    assert all(figure.value is None for _, figure in host.figures())
    assert host.power.sensor == "none"


def test_a_processor_without_8_bit_products_is_not_said_to_run_int8_fast(
    detect: Callable[..., Profile],
) -> None:
    old = {"proc/cpuinfo": "processor : 0\nmodel name : Old\nflags : fpu sse2\n"}

    assert detect(old, onnxruntime="1.32.0").backend("onnxruntime").fast_formats == ("float32",)


@pytest.mark.parametrize(
    ("installed", "ceiling"),
    [
        ("1.32.0", (28, 14)),
        ("1.33.1", (28, 14)),
        ("2.0", (28, 14)),
        ("1.31.0", (23, 11)),
        ("1.23.2", (23, 11)),
        ("1.20.1", (21, 10)),
        ("1.9.0", (None, None)),
        ("garbage", (None, None)),
    ],
)
def test_onnxruntimes_ceilings_are_those_of_the_newest_version_tried_that_is_not_newer(
    installed: str, ceiling: tuple[int | None, int | None]
) -> None:
    assert onnxruntime_ceiling(installed) == ceiling


def test_the_installed_onnxruntime_loads_its_ceiling_and_refuses_one_above() -> None:
    ort = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    opset, ir = onnxruntime_ceiling(ort.__version__)
    exactly_tried = ort.__version__.startswith(("1.20.", "1.23.", "1.32."))

    def loads(opset: int, ir: int) -> bool:
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
        graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [result])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
        model.ir_version = ir
        try:
            ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        except Exception:  # noqa: BLE001  (onnxruntime has many, none public)
            return False
        return True

    assert loads(opset, ir)
    if exactly_tried:
        assert not loads(opset + 1, ir)
        assert not loads(opset, ir + 1)


def test_a_version_is_read_without_importing_the_package() -> None:
    before = set(sys.modules)

    assert installed_version("pytest") == pytest.__version__
    assert installed_version("no-such-package-here") is None
    assert not {name for name in set(sys.modules) - before if name.startswith("onnxruntime")}


def test_find_profile_knows_host_names_and_files(tmp_path: Path) -> None:
    assert find_profile("host", tmp_path).name == "host"
    assert find_profile("raspberrypi5").name == "raspberrypi5"
    with pytest.raises(BadInput, match=r"unknown profile 'toaster'; known: .*raspberrypi5.*, host"):
        find_profile("toaster")
