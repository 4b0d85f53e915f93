#!/usr/bin/env python3
"""Write a plan as C for firmware: plan_data.c and plan_data.h, with the arena, inputs and outputs; print what it takes.

Takes a bundle with one native stage, or any one of its stages, or a plan file. Refuses what does not fit the memory.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from edgekit.core.bundle import Bundle, open_bundle
from edgekit.core.errors import BadInput, EdgekitError
from edgekit.native import door
from edgekit.native.plan import BITS, F32, I8, I32, U8, PlanTensor, constant_bytes
from edgekit.native.plan_door import outside_dtype, outside_shape

KERNELS = "portable"  # what firmware runs
CODE_BYTES = 32 * 1024  # at least: main.c and edgekit/native; the linker knows
C_TYPES = {BITS: "uint8_t", U8: "uint8_t", I8: "int8_t", I32: "int32_t", F32: "float"}
UNITS = {"": 1, "K": 1024, "M": 1024**2}
WORDS_PER_LINE = 6
MADE_BY = "Made by tools/plan_to_c.py; change nothing here."


@dataclass(frozen=True)
class Model:
    """A plan and what stands around it on the board. arena: bytes that suffice on every CPU."""

    source: str
    content: bytes
    arena: int
    inputs: tuple[PlanTensor, ...]
    outputs: tuple[PlanTensor, ...]

    @property
    def outside(self) -> int:
        """Bytes of the arrays for inputs and outputs."""
        return sum(size_of(tensor) for tensor in (*self.inputs, *self.outputs))


def main() -> None:
    """Exit code 2 and one line for what is no plan or does not fit, as edgekit's commands do."""
    try:
        run(parsed(sys.argv[1:]))
    except EdgekitError as err:
        sys.stderr.write(f"{err}\n")
        sys.exit(err.exit_code)


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="a bundle (.edge) or a plan file")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, help="folder for plan_data.c and plan_data.h"
    )
    parser.add_argument("--stage", type=int, help="which stage of the bundle, counted from 0")
    parser.add_argument("--flash", type=memory, help="of the board: 512K; refuse what does not fit")
    parser.add_argument("--ram", type=memory, help="of the board: 64K; refuse what does not fit")
    parser.add_argument("--stack", type=memory, default=0, help="bytes of --ram that the stack takes")
    parser.add_argument("--arena", type=memory, help="what the board said that it takes, where that is less")
    return parser.parse_args(arguments)


def run(given: argparse.Namespace) -> None:
    content = plan_of(given.file, given.stage)
    opened = door.open_plan(content, kernels=KERNELS)
    arena = opened.arena_bytes if given.arena is None else given.arena
    model = Model(given.file.name, content, arena, opened.inputs, opened.outputs)
    print(summary(model))
    check_memory(model, given)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "plan_data.h").write_text(header(model), encoding="utf-8")
    (given.out / "plan_data.c").write_text(source(model), encoding="utf-8")


def memory(text: str) -> int:
    """Bytes: 65536, 64K, 1M."""
    found = re.fullmatch(r"(\d{1,9})([KM]?)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"a number of bytes like 65536, 64K or 1M is wanted, got {text!r}")
    return int(found[1]) * UNITS[found[2]]


# --- the plan ----------------------------------------------------------------------------------------------------


def plan_of(path: Path, stage: int | None) -> bytes:
    """A plan file's bytes, or those of a bundle's stage. Raises BadInput where that is no plan, or must be named."""
    try:
        begins = path.open("rb").read(4)
    except OSError as err:
        raise BadInput(f"{path}: could not be read: {err.strerror or err}") from err
    if begins == b"EKPL":
        return path.read_bytes()
    bundle = open_bundle(path)
    return bundle.read(member_of(bundle, stage))


def member_of(bundle: Bundle, stage: int | None) -> str:
    stages = bundle.manifest.stages
    if stage is None and len(stages) > 1:
        raise BadInput(
            f"{bundle.path}: one stage is wanted, got {len(stages)}: name one with --stage (STAGE=)"
        )
    index = stage or 0
    if not 0 <= index < len(stages):
        raise BadInput(f"{bundle.path}: --stage must be 0 to {len(stages) - 1}, got {index}")
    for part in stages[index].parts:
        if part.backend == "native" and len(stages[index].parts) == 1:
            return part.file
    parts = ", ".join(part.backend for part in stages[index].parts)
    raise BadInput(f"{bundle.path}: stage {index} must be one part of backend native, got {parts}")


# --- what it takes ------------------------------------------------------------------------------------------------


def size_of(tensor: PlanTensor) -> int:
    count = 1
    for side in outside_shape(tensor):
        count *= side
    return count * outside_dtype(tensor).itemsize


def described(tensor: PlanTensor) -> str:
    """For people and comments in C: name, type and shape as it lies in memory."""
    axes = "h, w, planes, bytes" if tensor.type == BITS else "c, h, w" if tensor.channels_first else "h, w, c"
    shape = " x ".join(map(str, outside_shape(tensor)))
    name = json.dumps(tensor.name).replace("*/", "* /").replace("/*", "/ *")
    return f"{name}: {C_TYPES[tensor.type]} {shape} ({axes}), {size_of(tensor):,} bytes"


def summary(model: Model) -> str:
    constants = constant_bytes(model.content)
    lines = [
        f"flash   {len(model.content):,} bytes of plan ({constants:,} of weights and thresholds), and the code",
        f"RAM     {model.arena:,} bytes of arena at most, {model.outside:,} of inputs and outputs, and the stack",
        *(f"input   {described(tensor)}" for tensor in model.inputs),
        *(f"output  {described(tensor)}" for tensor in model.outputs),
    ]
    return "\n".join(lines)


def check_memory(model: Model, given: argparse.Namespace) -> None:
    """Raise BadInput where the flash or the RAM surely is too small."""
    flash = len(model.content) + CODE_BYTES
    if given.flash is not None and flash > given.flash:
        raise BadInput(
            f"{given.file}: {given.flash:,} bytes of flash are too few: the plan takes {len(model.content):,}, the "
            f"code {CODE_BYTES:,} or more"
        )
    if given.ram is not None and model.arena + model.outside + given.stack > given.ram:
        raise BadInput(
            f"{given.file}: {given.ram:,} bytes of RAM are too few: the arena takes {model.arena:,}, inputs and "
            f"outputs {model.outside:,}, the stack {given.stack:,}"
        )


# --- C -----------------------------------------------------------------------------------------------------------


def arrays(kind: str, tensors: tuple[PlanTensor, ...]) -> list[tuple[str, PlanTensor]]:
    """Each tensor's declaration without its storage class."""
    return [
        (
            f"{C_TYPES[tensor.type]} ek_model_{kind}_{index}[{size_of(tensor) // outside_dtype(tensor).itemsize}]",
            tensor,
        )
        for index, tensor in enumerate(tensors)
    ]


def header(model: Model) -> str:
    declared = [
        f"extern {declaration}; /* {described(tensor)} */"
        for declaration, tensor in (*arrays("input", model.inputs), *arrays("output", model.outputs))
    ]
    return f"""/* {MADE_BY} */
#ifndef EDGEKIT_PLAN_DATA_H
#define EDGEKIT_PLAN_DATA_H

#include <stdint.h>

enum {{
    EK_MODEL_SIZE = {len(model.content)},
    EK_MODEL_INPUTS = {len(model.inputs)},
    EK_MODEL_OUTPUTS = {len(model.outputs)},
}};

#ifndef EK_MODEL_ARENA
#define EK_MODEL_ARENA {model.arena} /* enough on every CPU; ek_plan_arena says what this one takes */
#endif

extern const uint64_t ek_model[];
extern unsigned char ek_model_arena[EK_MODEL_ARENA];

{chr(10).join(declared)}

/* All of them, in the order of ek_plan_run. */
extern void *const ek_model_inputs[EK_MODEL_INPUTS], *const ek_model_outputs[EK_MODEL_OUTPUTS];
extern const uint32_t ek_model_input_bytes[EK_MODEL_INPUTS], ek_model_output_bytes[EK_MODEL_OUTPUTS];

#endif
"""


def source(model: Model) -> str:
    padded = model.content + bytes(-len(model.content) % 8)
    words = [f"0x{word:016x}u" for (word,) in struct.iter_unpack("<Q", padded)]
    lines = [
        "    " + ", ".join(words[at : at + WORDS_PER_LINE]) + ","
        for at in range(0, len(words), WORDS_PER_LINE)
    ]
    outside = [
        *(f"{declaration};" for declaration, _ in arrays("input", model.inputs)),
        *(f"{declaration};" for declaration, _ in arrays("output", model.outputs)),
    ]
    return f"""/* {MADE_BY} */
#include "plan_data.h"

_Alignas(64) unsigned char ek_model_arena[EK_MODEL_ARENA];

{chr(10).join(outside)}

{table("input", model.inputs)}
{table("output", model.outputs)}

/* {comment(model.source)} */
const uint64_t ek_model[] = {{
{chr(10).join(lines)}
}};
"""


def table(kind: str, tensors: tuple[PlanTensor, ...]) -> str:
    pointers = ", ".join(f"ek_model_{kind}_{index}" for index in range(len(tensors)))
    sizes = ", ".join(str(size_of(tensor)) for tensor in tensors)
    return (
        f"void *const ek_model_{kind}s[] = {{{pointers}}};\n"
        f"const uint32_t ek_model_{kind}_bytes[] = {{{sizes}}};"
    )


def comment(text: str) -> str:
    return json.dumps(text).replace("*/", "* /").replace("/*", "/ *")


if __name__ == "__main__":
    main()
