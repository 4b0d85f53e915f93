"""The microcontroller's program, built for this machine and for Cortex-M: the bits of the library that Python opens."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import null_files, null_manifest
from c_programs import require, run
from overlay_plans import cnv, lfc, network, small_cnv
from plan_reference import to_outside
from random_plans import random_codes, random_plan

from edgekit.core.bundle import pack
from edgekit.native import door
from edgekit.native.plan import Plan, encode
from edgekit.native.plan_door import outside_dtype, outside_shape

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "plan_to_c.py"
SMALL_LFC = network((1, 1, 200), (("dense", 100), ("dense", 70), ("dense", 10)), binarize=True)
SMALL = {"small cnv": small_cnv(), "small lfc": SMALL_LFC}
FROM_C_LIBRARY = {"memcpy", "memmove", "memset", "memcmp", "strcmp"}
OF_COMPILER = re.compile(r"__aeabi_\w+|__gnu_thumb1_\w+")
NEVER = {"malloc", "calloc", "realloc", "free", "_malloc_r", "_sbrk", "printf", "snprintf", "_printf_r"}

# The machines that QEMU emulates: which CPU, its board file, RAM.
MACHINES = {
    "microbit": ("cortex-m0plus", "microbit", "16K"),  # a Cortex-M0: the same instructions
    "mps2-an385": ("cortex-m3", "mps2", "64K"),
    "mps2-an386": ("cortex-m4", "mps2", "64K"),
    "mps2-an500": ("cortex-m7", "mps2", "64K"),
}


def make(*settings: str | Path) -> subprocess.CompletedProcess[str]:
    settings = (*settings, f"PYTHON={sys.executable}", "CFLAGS=-Werror")
    return subprocess.run(
        ["make", "-s", "-C", ROOT / "firmware_stubs" / "mcu", *settings],
        capture_output=True,
        text=True,
        check=False,
    )


def made(*settings: str | Path) -> str:
    done = make(*settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds share it, so that edgekit/native is compiled once for each CPU."""
    require("make")
    return tmp_path_factory.mktemp("mcu")


def written(plan: Plan, folder: Path) -> Path:
    path = folder / "model.plan"
    path.write_bytes(encode(plan))
    return path


def images(plan: Plan, count: int) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(3)
    tensors = [plan.tensors[index] for index in plan.marked(outputs=False)]
    return [[to_outside(tensor, random_codes(rng, tensor)) for tensor in tensors] for _ in range(count)]


def wanted(plan: Plan, inputs: list[list[np.ndarray]]) -> list[bytes]:
    """What the library that Python opens gives, by the fastest kernels here."""
    opened = door.open_plan(encode(plan))
    answers = []
    for given in inputs:
        outputs = [np.zeros(outside_shape(tensor), outside_dtype(tensor)) for tensor in opened.outputs]
        opened.run(given, outputs)
        answers.append(b"".join(output.tobytes() for output in outputs))
    return answers


# --- on this machine ---------------------------------------------------------------------------------------------


def host_answers(plan: Plan, inputs: list[list[np.ndarray]], out: Path, folder: Path) -> list[bytes]:
    require("cc")
    made(f"PLAN={written(plan, folder)}", f"OUT={out / 'host'}")
    given = b"".join(array.tobytes() for each in inputs for array in each)
    done = subprocess.run([out / "host" / "firmware"], input=given, capture_output=True, check=True)
    assert re.fullmatch(rb"edgekit: arena (\d+) of \1 bytes\n", done.stderr)
    size = len(done.stdout) // len(inputs)
    return [done.stdout[at : at + size] for at in range(0, len(done.stdout), size)]


@pytest.mark.parametrize("name", SMALL)
def test_the_program_gives_the_librarys_bits(name: str, out: Path, tmp_path: Path) -> None:
    plan = SMALL[name]
    inputs = images(plan, 20)
    answers = wanted(plan, inputs)
    assert len(set(answers)) > 10
    assert host_answers(plan, inputs, out, tmp_path) == answers


@pytest.mark.parametrize("seed", [4, 9])
def test_plans_with_several_inputs_and_outputs_of_any_type_give_the_librarys_bits(
    seed: int, out: Path, tmp_path: Path
) -> None:
    plan = next(
        plan
        for plan in map(random_plan, range(seed * 100, seed * 100 + 100))
        if len(plan.marked(outputs=False)) > 1 and len(plan.marked(outputs=True)) > 1
    )
    inputs = images(plan, 5)
    assert host_answers(plan, inputs, out, tmp_path) == wanted(plan, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("plan", [cnv(), lfc()], ids=["cnv", "lfc"])
def test_networks_in_full_size_give_the_librarys_bits(plan: Plan, out: Path, tmp_path: Path) -> None:
    inputs = images(plan, 50)
    assert host_answers(plan, inputs, out, tmp_path) == wanted(plan, inputs)


def test_an_arena_that_is_too_small_is_said_with_both_sizes_and_ends_the_program(
    out: Path, tmp_path: Path
) -> None:
    require("cc")
    made(f"PLAN={written(small_cnv(), tmp_path)}", f"OUT={out / 'host'}", "ARENA=4096")
    done = subprocess.run([out / "host" / "firmware"], capture_output=True, text=True, check=False)
    needed = door.open_plan(encode(small_cnv()), kernels="portable").arena_bytes
    assert done.returncode == 1
    said = f"edgekit: arena {needed} of 4096 bytes: too small, build with a larger ARENA\n"
    assert (done.stderr, done.stdout) == (said, "")


def test_a_plan_that_was_damaged_in_flash_is_refused_and_ends_the_program(out: Path, tmp_path: Path) -> None:
    require("cc")
    settings = (f"PLAN={written(small_cnv(), tmp_path)}", f"OUT={out / 'host'}")
    made(*settings)
    source = out / "host" / "plan_data.c"
    last = source.read_text().rindex("0x")
    text = source.read_text()
    source.write_text(text[: last + 2] + ("1" if text[last + 2] == "0" else "0") + text[last + 3 :])
    made(*settings)
    done = subprocess.run([out / "host" / "firmware"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"edgekit: the plan is damaged: .*checksum.*\n", done.stderr)


# --- for microcontrollers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cpu", ["cortex-m0plus", "cortex-m4"])
def test_the_code_compiles_without_warnings_and_asks_for_nothing_but_bytes_being_moved(
    cpu: str, out: Path
) -> None:
    require("arm-none-eabi-gcc")
    made("library", f"CPU={cpu}", f"OUT={out / cpu}")
    lines = run("arm-none-eabi-nm", out / cpu / "libedgekit_native.a").splitlines()
    symbols = [line.split()[-2:] for line in lines if re.search(r" [A-Za-z] ", line)]
    undefined = {name for kind, name in symbols if kind == "U"} - {
        name for kind, name in symbols if kind != "U"
    }
    assert {name for name in undefined if not OF_COMPILER.fullmatch(name)} == FROM_C_LIBRARY


@pytest.mark.parametrize("cpu", ["cortex-m0plus", "cortex-m4"])
def test_an_image_links_with_the_plan_in_flash_and_the_arena_in_ram(
    cpu: str, out: Path, tmp_path: Path
) -> None:
    require("arm-none-eabi-gcc")
    plan = written(small_cnv(), tmp_path)
    made(f"PLAN={plan}", f"CPU={cpu}", f"OUT={out / cpu}", "FLASH=64K", "RAM=13K")
    lines = run("arm-none-eabi-nm", "-S", out / cpu / "firmware.elf").splitlines()
    symbols = {words[-1]: [int(word, 16) for word in words[:-2]] for words in map(str.split, lines)}
    assert not NEVER & symbols.keys()
    at, size = symbols["ek_model"]
    assert at % 8 == 0
    assert at + size < 64 * 1024
    assert size == plan.stat().st_size
    at, size = symbols["ek_model_arena"]
    assert at % 64 == 0
    assert 0x20000000 < at < at + size < 0x20000000 + 13 * 1024


def test_an_image_that_exceeds_the_flash_is_refused_by_the_linker_with_the_bytes(
    out: Path, tmp_path: Path
) -> None:
    require("arm-none-eabi-gcc")
    plan = written(small_cnv(), tmp_path)
    done = make(f"PLAN={plan}", "CPU=cortex-m4", f"OUT={out / 'cortex-m4'}", "FLASH=34K", "RAM=13K")
    assert done.returncode != 0
    assert re.search(r"region `FLASH' overflowed by \d+ bytes", done.stderr)


class Emulated:
    """A machine with the program in it; its first serial line is a pair of pipes."""

    def __init__(self, machine: str, image: Path) -> None:
        self._process = subprocess.Popen(
            (
                *("timeout", "60", "qemu-system-arm", "-M", machine, "-kernel", image),
                *("-display", "none", "-monitor", "none", "-serial", "stdio"),
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self.said = self._from.readline()

    def answer(self, arrays: list[np.ndarray], size: int) -> bytes:
        for array in arrays:
            self._to.write(array.tobytes())
        self._to.flush()
        return self._from.read(size)

    def stop(self) -> None:
        self._process.terminate()
        self._process.communicate()


def emulate(machine: str, plan: Plan, count: int, out: Path, folder: Path) -> tuple[int, int, int]:
    """Compare `count` answers; returns bytes of the arena that it takes, that it has, and of stack."""
    cpu, board, ram = MACHINES[machine]
    require("arm-none-eabi-gcc", "qemu-system-arm")
    board_file = ROOT / "firmware_stubs" / "mcu" / "boards" / f"{board}.c"
    memory = (f"CPU={cpu}", f"BOARD={board_file}", f"RAM={ram}", "MEASURE=1")
    made(f"PLAN={written(plan, folder)}", f"OUT={out / cpu}", *memory)
    inputs = images(plan, count)
    answers = wanted(plan, inputs)
    emulated = Emulated(machine, out / cpu / "firmware.elf")
    try:
        numbers = re.fullmatch(
            rb"edgekit: arena (\d+) of (\d+) bytes, stack (\d+) bytes, cycles [1-9]\d*\n", emulated.said
        )
        assert [emulated.answer(given, len(answers[0])) for given in inputs] == answers
    finally:
        emulated.stop()
    assert numbers is not None, emulated.said
    return int(numbers[1]), int(numbers[2]), int(numbers[3])


@pytest.mark.parametrize("machine", ["microbit", "mps2-an386"])
def test_an_emulated_microcontroller_gives_this_machines_bits(
    machine: str, out: Path, tmp_path: Path
) -> None:
    for name, plan in SMALL.items():
        needed, had, stack = emulate(machine, plan, 10, out, tmp_path)
        assert 0 < needed <= had, name
        assert 0 < stack < 3000, name


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["mps2-an385", "mps2-an386", "mps2-an500"])
@pytest.mark.parametrize("plan", [cnv(), lfc()], ids=["cnv", "lfc"])
def test_networks_in_full_size_on_an_emulated_microcontroller_give_this_machines_bits(
    machine: str, plan: Plan, out: Path, tmp_path: Path
) -> None:
    needed, had, stack = emulate(machine, plan, 20, out, tmp_path)
    assert needed <= had < 40 * 1024
    assert stack < 3000


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["mps2-an385", "mps2-an386", "mps2-an500"])
def test_random_plans_of_all_operators_on_an_emulated_microcontroller_give_this_machines_bits(
    machine: str, out: Path, tmp_path: Path
) -> None:
    for seed in range(25):
        emulate(machine, random_plan(seed), 3, out, tmp_path)


@pytest.mark.parametrize("cpu", ["cortex-m0plus", pytest.param("cortex-m4", marks=pytest.mark.slow)])
def test_zig_builds_the_image_without_a_c_library(cpu: str, out: Path, tmp_path: Path) -> None:
    zig = os.environ.get("EDGEKIT_ZIG", "zig")
    require(zig.split()[0])
    plan = written(small_cnv(), tmp_path)
    memory = ("FLASH=64K", "RAM=13K")
    made(f"PLAN={plan}", f"CPU={cpu}", f"OUT={out / f'zig-{cpu}'}", "TOOLCHAIN=zig", f"ZIG={zig}", *memory)
    assert (out / f"zig-{cpu}" / "firmware.elf").read_bytes()[:4] == b"\x7fELF"


# --- the tool ----------------------------------------------------------------------------------------------------


def plan_to_c(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True, check=False)


def test_a_plan_that_the_memory_does_not_hold_is_refused_with_the_numbers(tmp_path: Path) -> None:
    plan = written(small_cnv(), tmp_path)
    needed = door.open_plan(encode(small_cnv()), kernels="portable").arena_bytes
    done = plan_to_c(plan, "-o", tmp_path, "--ram", "8K", "--stack", "2048")
    assert done.returncode == 2
    assert done.stderr == (
        f"{plan}: 8,192 bytes of RAM are too few: the arena takes {needed:,}, inputs and outputs 472, the stack "
        "2,048\n"
    )
    done = plan_to_c(plan, "-o", tmp_path, "--flash", "32K")
    assert done.returncode == 2
    assert f"32,768 bytes of flash are too few: the plan takes {plan.stat().st_size:,}" in done.stderr
    assert not (tmp_path / "plan_data.c").exists()


def test_the_folder_is_made_where_it_is_missing(tmp_path: Path) -> None:
    done = plan_to_c(written(small_cnv(), tmp_path), "-o", tmp_path / "new" / "folder")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "folder" / "plan_data.c").exists()


def test_a_damaged_plan_is_refused_before_it_is_built(tmp_path: Path) -> None:
    plan = written(small_cnv(), tmp_path)
    content = bytearray(plan.read_bytes())
    content[-9] ^= 1
    plan.write_bytes(content)
    done = plan_to_c(plan, "-o", tmp_path)
    assert done.returncode == 2
    assert "checksum" in done.stderr
    assert done.stderr.count("\n") == 1


def bundle_of_plans(folder: Path) -> Path:
    """Two of its three stages are plans."""
    files, parts = null_files()
    for index in (0, 1):
        name, content = f"stages/{index}.plan", encode(small_cnv(seed=index))
        files[name] = content
        parts[index] = replace(
            parts[index], backend="native", file=name, sha256=hashlib.sha256(content).hexdigest()
        )
    path = folder / "model.edge"
    path.write_bytes(pack(null_manifest(files, parts), files, {"v": 1}))
    return path


def test_a_bundles_stage_is_its_plan_whole(tmp_path: Path) -> None:
    done = plan_to_c(bundle_of_plans(tmp_path), "-o", tmp_path, "--stage", "1")
    assert (done.returncode, done.stderr) == (0, "")
    words = re.findall(r"0x([0-9a-f]{16})u", (tmp_path / "plan_data.c").read_text())
    assert b"".join(int(word, 16).to_bytes(8, "little") for word in words) == encode(small_cnv(seed=1))


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ((), "one stage is wanted, got 3: name one with --stage"),
        (("--stage", "3"), "--stage must be 0 to 2, got 3"),
        (("--stage", "2"), "stage 2 must be one part of backend native, got null"),
    ],
)
def test_a_bundles_stage_that_is_no_plan_is_refused_by_what_it_is(
    stage: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    done = plan_to_c(bundle_of_plans(tmp_path), "-o", tmp_path, *stage)
    assert done.returncode == 2
    assert said in done.stderr
