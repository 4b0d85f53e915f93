"""A board as data: what it is made of, what it runs fast, what that costs. Detects and measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.core.checks import NAME
from edgekit.core.errors import BadInput
from edgekit.core.figure import Figure, unknown
from edgekit.core.registry import pick
from edgekit.core.resources import device_profile_files
from edgekit.core.table import Table
from edgekit.core.toml import parse_toml, read_toml

FORMAT = 1
HOST = "host"  # the profile that no file holds: edgekit.runtime.detect finds it out where it runs
FORMATS = ("float32", "float16", "int8", "binary")
BACKENDS = ("onnxruntime", "litert", "tflite-runtime", "native", "overlay", "overlay-sim", "null")
INT8 = ("uint8", "int8")


@dataclass(frozen=True)
class Cpu:
    """The processor. isa: "armv8.2-a", "armv7-a" or "x86-64". features: extras (neon, dotprod, avx512vnni).

    clock_ghz: the highest clock it holds with all cores busy.
    """

    model: str
    cores: int
    isa: str
    features: tuple[str, ...] = ()
    clock_ghz: Figure = field(default_factory=lambda: unknown("GHz"))


@dataclass(frozen=True)
class Memory:
    """ram_mb: all of it, in 2^20 bytes. bandwidth_gb_s: peak, in 10^9 bytes per second."""

    ram_mb: Figure = field(default_factory=lambda: unknown("MB"))
    bandwidth_gb_s: Figure = field(default_factory=lambda: unknown("GB/s"))


@dataclass(frozen=True)
class Backend:
    """One runtime the board has, and its limits. None: no such limit, or nobody knows.

    version: the version these limits hold for. max_opset, max_ir: the newest ONNX it loads.
    providers: onnxruntime's execution providers in order of preference; the first available one is used.
    fast_formats: number formats that are not slower than float32 here.
    int8_activation: the type whose kernels are fused on this processor ("uint8" on x86, "int8" on ARM).
    """

    name: str
    version: str | None = None
    max_opset: int | None = None
    max_ir: int | None = None
    providers: tuple[str, ...] = ()
    fast_formats: tuple[str, ...] = ("float32",)
    int8_activation: str | None = None


@dataclass(frozen=True)
class OpCosts:
    """What one class of operators costs in one number format: the sum of its MACs, bytes and calls at these rates."""

    macs_per_second: Figure = field(default_factory=lambda: unknown("MAC/s"))
    bytes_per_second: Figure = field(default_factory=lambda: unknown("B/s"))
    call_overhead_us: Figure = field(default_factory=lambda: unknown("us"))


@dataclass(frozen=True)
class Costs:
    """What work costs on `threads` threads. macs_per_second: by number format; one that is missing is unknown.

    operators: class of operator ("Conv.depthwise") -> number format -> its own costs, where somebody measured them.
    """

    threads: int
    macs_per_second: Mapping[str, Figure]
    bytes_per_second: Figure = field(default_factory=lambda: unknown("B/s"))
    call_overhead_us: Figure = field(default_factory=lambda: unknown("us"))
    operators: Mapping[str, Mapping[str, OpCosts]] = field(default_factory=dict)


@dataclass(frozen=True)
class Power:
    """sensor: a name of edgekit.runtime.power. idle_w, busy_w: the whole board without USB devices."""

    sensor: str = "none"
    idle_w: Figure = field(default_factory=lambda: unknown("W"))
    busy_w: Figure = field(default_factory=lambda: unknown("W"))


@dataclass(frozen=True)
class Fpga:
    """The programmable logic: look-up tables, flip-flops, 36-kbit block RAMs, multipliers, overlay clock."""

    luts: Figure
    ffs: Figure
    bram36: Figure
    dsp: Figure
    clock_mhz: Figure


@dataclass(frozen=True)
class Profile:
    """One kind of board. extra: keys this version does not know (dotted path -> value), kept and ignored."""

    name: str
    title: str
    cpu: Cpu
    memory: Memory
    os: tuple[str, ...]
    python: tuple[str, ...]
    backends: tuple[Backend, ...]
    cost: Costs
    power: Power
    fpga: Fpga | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    def backend(self, name: str) -> Backend:
        """The backend called `name`. Raises BadInput that lists the ones this board has."""
        return pick(f"backend of {self.name}", {backend.name: backend for backend in self.backends}, name)

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Every figure with its dotted path, in the order of the file."""
        yield "cpu.clock_ghz", self.cpu.clock_ghz
        yield "memory.ram_mb", self.memory.ram_mb
        yield "memory.bandwidth_gb_s", self.memory.bandwidth_gb_s
        for fmt, figure in self.cost.macs_per_second.items():
            yield f"cost.macs_per_second.{fmt}", figure
        yield "cost.bytes_per_second", self.cost.bytes_per_second
        yield "cost.call_overhead_us", self.cost.call_overhead_us
        for op, by_format in self.cost.operators.items():
            for fmt, own in by_format.items():
                for key, figure in _op_figures(own).items():
                    yield f'cost.operators."{op}".{fmt}.{key}', figure
        yield "power.idle_w", self.power.idle_w
        yield "power.busy_w", self.power.busy_w
        if self.fpga is not None:
            for key, figure in _fpga_figures(self.fpga).items():
                yield f"fpga.{key}", figure

    def to_json(self) -> dict[str, object]:
        """The layout of the TOML file, unknown figures with value null: `profile_from` reads it back."""
        cpu, cost, power = self.cpu, self.cost, self.power
        return {
            "format": FORMAT,
            "name": self.name,
            "title": self.title,
            "cpu": {
                "model": cpu.model,
                "cores": cpu.cores,
                "isa": cpu.isa,
                "features": list(cpu.features),
                "clock_ghz": cpu.clock_ghz.to_json(),
            },
            "memory": {
                "ram_mb": self.memory.ram_mb.to_json(),
                "bandwidth_gb_s": self.memory.bandwidth_gb_s.to_json(),
            },
            "os": {"supported": list(self.os)},
            "python": {"versions": list(self.python)},
            "backends": [
                {
                    "name": backend.name,
                    "version": backend.version,
                    "max_opset": backend.max_opset,
                    "max_ir": backend.max_ir,
                    "providers": list(backend.providers),
                    "fast_formats": list(backend.fast_formats),
                    "int8_activation": backend.int8_activation,
                }
                for backend in self.backends
            ],
            "cost": {
                "threads": cost.threads,
                "macs_per_second": {fmt: figure.to_json() for fmt, figure in cost.macs_per_second.items()},
                "bytes_per_second": cost.bytes_per_second.to_json(),
                "call_overhead_us": cost.call_overhead_us.to_json(),
                "operators": {
                    op: {
                        fmt: {key: figure.to_json() for key, figure in _op_figures(own).items()}
                        for fmt, own in by_format.items()
                    }
                    for op, by_format in cost.operators.items()
                },
            },
            "power": {
                "sensor": power.sensor,
                "idle_w": power.idle_w.to_json(),
                "busy_w": power.busy_w.to_json(),
            },
            "fpga": None
            if self.fpga is None
            else {key: figure.to_json() for key, figure in _fpga_figures(self.fpga).items()},
        }


def parse_profile(text: str, where: str) -> Profile:
    """The profile that TOML `text` describes. Raises BadInput: where, what was wanted, what came."""
    data = parse_toml(text, where)
    return profile_from(data, where)


def profile_from(data: Mapping[str, object], where: str) -> Profile:
    """The profile in a mapping laid out like the TOML file; null means absent. Raises BadInput."""
    top = Table(data, where)
    fmt = top.count("format")
    if fmt > FORMAT:
        raise BadInput(
            f"{where}: profile format {fmt} is newer than this edgekit reads ({FORMAT}): update edgekit"
        )
    name = top.text("name")
    if not NAME.fullmatch(name):
        raise top.wrong("name", "a name (letters, digits, '_' and '-', at most 64)", name)
    cpu = _cpu(top.table("cpu"))
    backends = _backends(top.tables("backends"))
    profile = Profile(
        name=name,
        title=top.optional_text("title") or name,
        cpu=cpu,
        memory=_memory(top.optional_table("memory")),
        os=top.optional_table("os").texts("supported"),
        python=top.optional_table("python").texts("versions"),
        backends=backends,
        cost=_costs(top.optional_table("cost"), cpu.cores, fast_formats(backends)),
        power=_power(top.optional_table("power")),
        fpga=None if top.take("fpga") is None else _fpga(top.table("fpga")),
        extra=top.extra,
    )
    top.close()
    return profile


def fast_formats(backends: Sequence[Backend]) -> tuple[str, ...]:
    """The number formats that some backend runs fast, in the order of FORMATS."""
    return tuple(fmt for fmt in FORMATS if any(fmt in backend.fast_formats for backend in backends))


def known_profiles() -> tuple[str, ...]:
    """The names that --profile takes: the shipped files, and `host`."""
    return (*sorted(device_profile_files()), HOST)


def profile(name_or_path: str) -> Profile:
    """The shipped profile of that name, or the one in that file (a text with a "/" or ending in ".toml").

    `host` is not here: edgekit.runtime.detect.find_profile detects it. Raises BadInput (an unknown name lists
    the known ones) or WorldFailed (the file cannot be read).
    """
    if is_path(name_or_path):
        return read_profile(name_or_path)
    files = device_profile_files()
    if name_or_path not in files:
        known = ", ".join(known_profiles())
        raise BadInput(f"unknown profile {name_or_path!r}; known: {known}")
    return parse_profile(files[name_or_path].read_text(encoding="utf-8"), f"{name_or_path}.toml")


def is_path(name_or_path: str) -> bool:
    """Whether the text means a file and not a shipped name."""
    return "/" in name_or_path or name_or_path.endswith(".toml")


def read_profile(path: str) -> Profile:
    """The profile in the file at `path`. Raises BadInput, or WorldFailed where the disk does not give it."""
    return profile_from(read_toml(Path(path)), path)


def _cpu(table: Table) -> Cpu:
    return Cpu(
        model=table.text("model"),
        cores=table.count("cores"),
        isa=table.text("isa"),
        features=table.texts("features"),
        clock_ghz=table.figure("clock_ghz", "GHz"),
    )


def _memory(table: Table) -> Memory:
    return Memory(table.figure("ram_mb", "MB"), table.figure("bandwidth_gb_s", "GB/s"))


def _backends(tables: Sequence[Table]) -> tuple[Backend, ...]:
    found: dict[str, Backend] = {}
    for table in tables:
        backend = _backend(table)
        if backend.name in found:
            raise table.wrong("name", "a backend not listed before", backend.name)
        found[backend.name] = backend
    return tuple(found.values())


def _backend(table: Table) -> Backend:
    formats = table.texts("fast_formats")
    for fmt in formats:
        if fmt not in FORMATS:
            raise table.wrong("fast_formats", f"a list of {', '.join(FORMATS)}", fmt)
    return Backend(
        name=table.choice("name", BACKENDS),
        version=table.optional_text("version"),
        max_opset=table.optional_count("max_opset"),
        max_ir=table.optional_count("max_ir"),
        providers=table.texts("providers"),
        fast_formats=formats or ("float32",),
        int8_activation=None
        if table.take("int8_activation") is None
        else table.choice("int8_activation", INT8),
    )


def _costs(table: Table, cores: int, expected: Sequence[str]) -> Costs:
    by_format = table.optional_table("macs_per_second")
    formats = [fmt for fmt in FORMATS if fmt in by_format.data or fmt in expected]
    return Costs(
        threads=table.optional_count("threads") or cores,
        macs_per_second={fmt: by_format.figure(fmt, "MAC/s") for fmt in formats},
        bytes_per_second=table.figure("bytes_per_second", "B/s"),
        call_overhead_us=table.figure("call_overhead_us", "us"),
        operators=_operators(table.optional_table("operators")),
    )


def _operators(table: Table) -> dict[str, dict[str, OpCosts]]:
    found: dict[str, dict[str, OpCosts]] = {}
    for op in table.data:
        by_format = table.table(op)
        found[op] = {
            fmt: _op_costs(by_format.optional_table(fmt)) for fmt in FORMATS if fmt in by_format.data
        }
    return found


def _op_costs(table: Table) -> OpCosts:
    return OpCosts(
        macs_per_second=table.figure("macs_per_second", "MAC/s"),
        bytes_per_second=table.figure("bytes_per_second", "B/s"),
        call_overhead_us=table.figure("call_overhead_us", "us"),
    )


def _op_figures(costs: OpCosts) -> dict[str, Figure]:
    return {
        "macs_per_second": costs.macs_per_second,
        "bytes_per_second": costs.bytes_per_second,
        "call_overhead_us": costs.call_overhead_us,
    }


def _power(table: Table) -> Power:
    return Power(
        table.optional_text("sensor") or "none", table.figure("idle_w", "W"), table.figure("busy_w", "W")
    )


def _fpga(table: Table) -> Fpga:
    return Fpga(
        luts=table.figure("luts", "1"),
        ffs=table.figure("ffs", "1"),
        bram36=table.figure("bram36", "1"),
        dsp=table.figure("dsp", "1"),
        clock_mhz=table.figure("clock_mhz", "MHz"),
    )


def _fpga_figures(fpga: Fpga) -> dict[str, Figure]:
    return {
        "luts": fpga.luts,
        "ffs": fpga.ffs,
        "bram36": fpga.bram36,
        "dsp": fpga.dsp,
        "clock_mhz": fpga.clock_mhz,
    }
