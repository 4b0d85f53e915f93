"""A bundle's manifest, format 1: parsed and checked once. Knows nothing of zip files, numpy or runtimes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekit.core import checks
from edgekit.core.checks import choice, flag, integer, number, optional, rows, table, text
from edgekit.core.cost import Work
from edgekit.core.errors import BadBundle, BadInput

FORMAT = "edgekit.bundle/1"
_FORMAT = re.compile(r"edgekit\.bundle/(\d{1,6})(?:\.\d{1,6})?")
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_RANK = 8
MANIFEST, REPORT = "manifest.json", "report.json"
DTYPES = ("float32", "float16", "uint8", "int8", "int16", "int32", "int64", "bool")
LAYOUTS = ("NCHW", "NHWC", "flat")
CHANNELS = ("L", "RGB", "BGR")
RESIZES = ("none", "stretch", "crop", "pad")
RESAMPLERS = ("nearest", "bilinear", "bicubic", "lanczos", "box")
METRICS = ("top1", "agreement")


def member_name(value: object, where: str) -> str:
    """A relative path of plain segments: no '..', no absolute path, no backslash, no control character."""
    if (
        not isinstance(value, str)
        or len(value) > 200
        or not all(_SEGMENT.fullmatch(segment) for segment in value.split("/"))
    ):
        raise checks.wrong(where, "a plain relative file name", value)
    return value


@dataclass(frozen=True)
class Tensor:
    """One tensor that crosses a border: its name, dtype and fixed shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, value: object, where: str) -> Tensor:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        shape = rows(data.get("shape"), f"{where}.shape", lambda v, w: integer(v, w, 1, 2**31))
        if len(shape) > MAX_RANK:
            raise checks.wrong(f"{where}.shape", f"of rank {MAX_RANK} at most", list(shape))
        return cls(
            text(data.get("name"), f"{where}.name"),
            choice(data.get("dtype"), f"{where}.dtype", DTYPES),
            shape,
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


@dataclass(frozen=True)
class Part:
    """One file of a stage and the backend that runs it. Several parts may be of one file: stages that repeat others.

    names: tensor -> what the file calls it, where it calls it otherwise.
    """

    backend: str
    file: str
    sha256: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    executes_code: bool = False  # a compiled library or a bitstream: the board's config must allow it
    design_id: str | None = None  # an overlay's identity, checked by its driver
    names: Mapping[str, str] = field(default_factory=dict)

    def in_file(self, name: str) -> str:
        """What the file calls one of the part's tensors."""
        return self.names.get(name, name)

    @classmethod
    def parse(cls, value: object, where: str) -> Part:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        names = table(data.get("names", {}), f"{where}.names")
        part = cls(
            backend=checks.name(data.get("backend"), f"{where}.backend"),
            file=member_name(data.get("file"), f"{where}.file"),
            sha256=checks.sha256(data.get("sha256"), f"{where}.sha256"),
            inputs=rows(data.get("inputs"), f"{where}.inputs", Tensor.parse),
            outputs=rows(data.get("outputs"), f"{where}.outputs", Tensor.parse),
            executes_code=flag(data.get("executes_code", False), f"{where}.executes_code"),
            design_id=optional(data.get("design_id"), f"{where}.design_id", text),
            names={key: text(value, f"{where}.names.{key}") for key, value in names.items()},
        )
        tensors = {tensor.name for tensor in (*part.inputs, *part.outputs)}
        if not set(part.names) <= tensors or len(set(map(part.in_file, tensors))) != len(tensors):
            raise checks.wrong(
                f"{where}.names", "another name for each of some of its tensors", dict(part.names)
            )
        return part

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        made: dict[str, Any] = {
            "backend": self.backend,
            "file": self.file,
            "sha256": self.sha256,
            "inputs": [t.to_json() for t in self.inputs],
            "outputs": [t.to_json() for t in self.outputs],
            "executes_code": self.executes_code,
            "design_id": self.design_id,
        }
        return made | {"names": dict(self.names)} if self.names else made  # a content_id from before stays


@dataclass(frozen=True)
class Stage:
    """What runs from one exit to the next."""

    parts: tuple[Part, ...]
    work: tuple[Work, ...]  # what core.cost predicts latency from

    @classmethod
    def parse(cls, value: object, where: str) -> Stage:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        parts = rows(data.get("parts"), f"{where}.parts", Part.parse)
        if not parts:
            raise checks.wrong(f"{where}.parts", "a list of at least one part", [])
        return cls(parts, rows(data.get("work", []), f"{where}.work", Work.from_json))

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        return {"parts": [p.to_json() for p in self.parts], "work": [w.to_json() for w in self.work]}

    @property
    def macs(self) -> float:
        """Multiply-accumulates of this stage alone."""
        return float(sum(w.macs for w in self.work))


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the input tensor: (pixel * scale - mean) / std per channel, pixels 0-255."""

    channels: str = "RGB"
    resize: str = "stretch"
    resampler: str = "bilinear"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @classmethod
    def parse(cls, value: object, where: str) -> Preprocess:
        """Read from JSON or TOML. Raises BadInput."""
        data = table(value, where)
        channels = choice(data.get("channels", "RGB"), f"{where}.channels", CHANNELS)
        mean = rows(data.get("mean", [0.0]), f"{where}.mean", number)
        std = rows(data.get("std", [1.0]), f"{where}.std", lambda v, w: number(v, w, 1e-12))
        for key, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, 1 if channels == "L" else 3):
                raise checks.wrong(
                    f"{where}.{key}", f"one number or one per channel of {channels}", list(values)
                )
        return cls(
            channels,
            choice(data.get("resize", "stretch"), f"{where}.resize", RESIZES),
            choice(data.get("resampler", "bilinear"), f"{where}.resampler", RESAMPLERS),
            number(data.get("scale", 1.0), f"{where}.scale"),
            mean,
            std,
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        return {
            "channels": self.channels,
            "resize": self.resize,
            "resampler": self.resampler,
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
        }


@dataclass(frozen=True)
class Input:
    """A model input; `preprocess` is None where it takes tensors only."""

    tensor: Tensor
    layout: str
    preprocess: Preprocess | None

    @classmethod
    def parse(cls, value: object, where: str) -> Input:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        return cls(
            Tensor.parse(value, where),
            choice(data.get("layout"), f"{where}.layout", LAYOUTS),
            optional(data.get("preprocess"), f"{where}.preprocess", Preprocess.parse),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        preprocess = self.preprocess.to_json() if self.preprocess else None
        return {**self.tensor.to_json(), "layout": self.layout, "preprocess": preprocess}


@dataclass(frozen=True)
class Exit:
    """A place where an answer can be given: after `stage`, with this output and this scalar confidence.

    also: further outputs that belong to the same answer (a detector's boxes beside its scores).
    """

    name: str
    stage: int
    output: str
    confidence: str | None  # None only on the last exit of a network that has no classes
    cost_share: float  # cumulative MACs over the whole network's
    also: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """All tensors of the answer, the one that decides first."""
        return (self.output, *self.also)

    @classmethod
    def parse(cls, value: object, where: str) -> Exit:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        return cls(
            checks.name(data.get("name"), f"{where}.name"),
            integer(data.get("stage"), f"{where}.stage", 0, 1000),
            text(data.get("output"), f"{where}.output"),
            optional(data.get("confidence"), f"{where}.confidence", text),
            number(data.get("cost_share"), f"{where}.cost_share", 0.0, 1.0),
            rows(data.get("also", []), f"{where}.also", text),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse; `also` only where there is something in it."""
        return {
            "name": self.name,
            "stage": self.stage,
            "output": self.output,
            "confidence": self.confidence,
            "cost_share": self.cost_share,
            **({"also": list(self.also)} if self.also else {}),
        }


@dataclass(frozen=True)
class OperatingPoint:
    """One choice of thresholds with what it costs and brings on validation data.

    thresholds: one per exit but the last; leave where confidence >= threshold. cost_share: expected MACs over the
    full network's. exit_shares: expected fraction leaving at each exit. quality: expected accuracy or agreement.
    quality_low: lower one-sided 95 % bound of the quality, given the full network's: what few validation samples can
    really promise (paired score bound: only answers that leaving early changed count). None: nobody worked it out.
    """

    thresholds: tuple[float, ...]
    cost_share: float
    exit_shares: tuple[float, ...]
    quality: float
    quality_low: float | None = None

    @classmethod
    def parse(cls, value: object, where: str) -> OperatingPoint:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        return cls(
            rows(data.get("thresholds"), f"{where}.thresholds", number),
            number(data.get("cost_share"), f"{where}.cost_share", 0.0, 1.0),
            rows(data.get("exit_shares"), f"{where}.exit_shares", lambda v, w: number(v, w, 0.0, 1.0)),
            number(data.get("quality"), f"{where}.quality", 0.0, 1.0),
            optional(data.get("quality_low"), f"{where}.quality_low", lambda v, w: number(v, w, 0.0, 1.0)),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse; `quality_low` only where it is known."""
        return {
            "thresholds": list(self.thresholds),
            "cost_share": self.cost_share,
            "exit_shares": list(self.exit_shares),
            "quality": self.quality,
            **({} if self.quality_low is None else {"quality_low": self.quality_low}),
        }


def cheapest_point(points: tuple[OperatingPoint, ...], max_drop: float) -> OperatingPoint:
    """The first point that keeps the full network's quality but for `max_drop` (a fraction); the last one if none does.

    Where the table says how low a point's quality may really be, seen how few samples it was found on, that must hold.
    """
    enough = points[-1].quality - max_drop
    promised = (point.quality if point.quality_low is None else point.quality_low for point in points)
    return next(
        (point for point, quality in zip(points, promised, strict=True) if quality >= enough), points[-1]
    )


@dataclass(frozen=True)
class GoldenOutput:
    """What one tensor must be for the golden inputs, within `tolerance` (absolute, = steps of its quantization)."""

    tensor: str
    stage: int
    file: str
    tolerance: float

    @classmethod
    def parse(cls, value: object, where: str) -> GoldenOutput:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        return cls(
            text(data.get("tensor"), f"{where}.tensor"),
            integer(data.get("stage"), f"{where}.stage", 0, 1000),
            member_name(data.get("file"), f"{where}.file"),
            number(data.get("tolerance"), f"{where}.tolerance", 0.0),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        return {"tensor": self.tensor, "stage": self.stage, "file": self.file, "tolerance": self.tolerance}


@dataclass(frozen=True)
class Golden:
    """Golden cases: `inputs` maps input name -> .npy member of shape (count, *input shape)."""

    count: int
    inputs: Mapping[str, str]
    outputs: tuple[GoldenOutput, ...]

    @classmethod
    def parse(cls, value: object, where: str) -> Golden:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        inputs = table(data.get("inputs"), f"{where}.inputs")
        return cls(
            integer(data.get("count"), f"{where}.count", 1, 10_000),
            {text(k, f"{where}.inputs"): member_name(v, f"{where}.inputs.{k}") for k, v in inputs.items()},
            rows(data.get("outputs"), f"{where}.outputs", GoldenOutput.parse),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        outputs = [o.to_json() for o in self.outputs]
        return {"count": self.count, "inputs": dict(self.inputs), "outputs": outputs}


@dataclass(frozen=True)
class BoardLimits:
    """What a board must keep with the bundle, judged in its trial there. None: no such limit.

    latency_ms: of a request run through all stages, its median: what `convert` judges, too. memory_mb: private memory
    that the open bundle adds to the agent. energy_mj: mean of a request run through all stages.
    """

    latency_ms: float | None = None
    memory_mb: float | None = None
    energy_mj: float | None = None

    @classmethod
    def parse(cls, value: object, where: str) -> BoardLimits:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        return cls(
            *(
                optional(data.get(key), f"{where}.{key}", lambda v, w: number(v, w, 0.0, 1e9))
                for key in ("latency_ms", "memory_mb", "energy_mj")
            )
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse; a limit only where there is one."""
        known = {
            "latency_ms": self.latency_ms,
            "memory_mb": self.memory_mb,
            "energy_mj": self.energy_mj,
        }
        return {key: value for key, value in known.items() if value is not None}


@dataclass(frozen=True)
class Member:
    """A file of the bundle besides manifest and report."""

    name: str
    size: int
    sha256: str

    @classmethod
    def parse(cls, value: object, where: str) -> Member:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        return cls(
            member_name(data.get("name"), f"{where}.name"),
            integer(data.get("size"), f"{where}.size"),
            checks.sha256(data.get("sha256"), f"{where}.sha256"),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        return {"name": self.name, "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True)
class Manifest:
    """Everything about a bundle but its measured figures. `files` lists every member besides manifest and report."""

    name: str
    version: int
    profiles: tuple[str, ...]
    inputs: tuple[Input, ...]
    labels: tuple[str, ...] | None
    stages: tuple[Stage, ...]
    exits: tuple[Exit, ...]
    quality_metric: str  # what OperatingPoint.quality is: "top1" or "agreement" with the last exit
    operating_points: tuple[OperatingPoint, ...]  # cheapest first; cost and quality never fall
    golden: Golden
    recipe: str
    files: tuple[Member, ...]
    limits: BoardLimits = field(default_factory=BoardLimits)

    @classmethod
    def parse(cls, value: object, where: str = MANIFEST) -> Manifest:
        """Read and cross-check a manifest. Raises BadBundle; a newer major format is refused by name."""
        try:
            manifest = cls._parse(value, where)
            _check(manifest, where)
        except BadInput as err:
            raise BadBundle(checks.line(str(err))) from err
        return manifest

    @classmethod
    def _parse(cls, value: object, where: str) -> Manifest:
        data = table(value, where)
        form = data.get("format")
        match = _FORMAT.fullmatch(form) if isinstance(form, str) else None
        if match is None:
            raise checks.wrong(f"{where}: format", f"{FORMAT!r}", form)
        if int(match[1]) != 1:
            raise BadBundle(
                f"{where}: format {form!r} is newer than this edgekit reads ({FORMAT!r}): update edgekit"
            )
        return cls(
            name=checks.name(data.get("name"), f"{where}: name"),
            version=integer(data.get("version"), f"{where}: version", 1, 2**31),
            profiles=rows(data.get("profiles"), f"{where}: profiles", checks.name),
            inputs=rows(data.get("inputs"), f"{where}: inputs", Input.parse),
            labels=optional(data.get("labels"), f"{where}: labels", lambda v, w: rows(v, w, text)),
            stages=rows(data.get("stages"), f"{where}: stages", Stage.parse),
            exits=rows(data.get("exits"), f"{where}: exits", Exit.parse),
            quality_metric=choice(data.get("quality_metric"), f"{where}: quality_metric", METRICS),
            operating_points=rows(
                data.get("operating_points"), f"{where}: operating_points", OperatingPoint.parse
            ),
            golden=Golden.parse(data.get("golden"), f"{where}: golden"),
            recipe=member_name(data.get("recipe"), f"{where}: recipe"),
            files=rows(data.get("files"), f"{where}: files", Member.parse),
            limits=BoardLimits.parse(data.get("limits", {}), f"{where}: limits"),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse, complete: every key is present, but `limits` only where there are some."""
        limits = self.limits.to_json()
        return {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "profiles": list(self.profiles),
            "inputs": [i.to_json() for i in self.inputs],
            "labels": None if self.labels is None else list(self.labels),
            "stages": [s.to_json() for s in self.stages],
            "exits": [e.to_json() for e in self.exits],
            "quality_metric": self.quality_metric,
            "operating_points": [p.to_json() for p in self.operating_points],
            "golden": self.golden.to_json(),
            "recipe": self.recipe,
            "files": [m.to_json() for m in self.files],
            **({"limits": limits} if limits else {}),  # a content_id from before stays
        }

    @property
    def executes_code(self) -> bool:
        """Whether any part runs code that came with the bundle."""
        return any(part.executes_code for stage in self.stages for part in stage.parts)

    @property
    def macs(self) -> float:
        """Multiply-accumulates of the whole network."""
        return sum(stage.macs for stage in self.stages)


def _check(manifest: Manifest, where: str) -> None:
    listed = {member.name: member for member in manifest.files}
    if len(listed) != len(manifest.files) or {MANIFEST, REPORT} & set(listed):
        raise BadBundle(f"{where}: files must name each member once, without {MANIFEST} and {REPORT}")
    used = {manifest.recipe, *manifest.golden.inputs.values(), *(o.file for o in manifest.golden.outputs)}
    parts = [part for stage in manifest.stages for part in stage.parts]
    for name in sorted(used | {part.file for part in parts}):
        if name not in listed:
            raise BadBundle(f"{where}: {name!r} is used but not listed in files")
    for part in parts:
        if listed[part.file].sha256 != part.sha256:
            raise BadBundle(f"{where}: {part.file!r} has two different sha256")
    if not (manifest.inputs and manifest.stages and manifest.exits and manifest.profiles):
        raise BadBundle(f"{where}: inputs, profiles, stages and exits must each have at least one entry")
    if [e.stage for e in manifest.exits] != list(range(len(manifest.stages))):
        raise BadBundle(f"{where}: exits must be one per stage, in order")
    _check_flow(manifest, where)
    _check_points(manifest, where)


def _check_flow(manifest: Manifest, where: str) -> None:
    """Every part's input must have been made before it, or be an input of the network."""
    known = {entry.tensor.name: entry.tensor for entry in manifest.inputs}
    for index, stage in enumerate(manifest.stages):
        for part in stage.parts:
            for tensor in part.inputs:
                if known.get(tensor.name) != tensor:
                    raise BadBundle(
                        f"{where}: stages[{index}] wants {tensor.name!r}, which nothing before it makes"
                    )
            for tensor in part.outputs:
                if tensor.name in known:
                    raise BadBundle(f"{where}: stages[{index}] makes {tensor.name!r} a second time")
                known[tensor.name] = tensor
        made = manifest.exits[index]
        for name in (*made.outputs, made.confidence):
            if name is not None and name not in known:
                raise BadBundle(f"{where}: exit {made.name!r} wants {name!r}, which its stage does not make")
        if made.confidence is None and index + 1 < len(manifest.stages):
            raise BadBundle(f"{where}: exit {made.name!r} needs a confidence, since stages follow it")
    for output in manifest.golden.outputs:
        if output.tensor not in known or output.stage >= len(manifest.stages):
            raise BadBundle(f"{where}: golden output {output.tensor!r} is made by no stage")


def _check_points(manifest: Manifest, where: str) -> None:
    shares = [e.cost_share for e in manifest.exits]
    if shares != sorted(shares):
        raise BadBundle(f"{where}: exits must have growing cost_share")
    costs = [p.cost_share for p in manifest.operating_points]
    if costs != sorted(costs):
        raise BadBundle(f"{where}: operating_points must go from cheapest to full")
    for index, point in enumerate(manifest.operating_points):
        if len(point.thresholds) != len(manifest.exits) - 1 or len(point.exit_shares) != len(manifest.exits):
            raise BadBundle(f"{where}: operating_points[{index}] must have a threshold per exit but the last")
