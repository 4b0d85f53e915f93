"""What both TFLite runtimes share: a part opened in an interpreter, the Session's buffers copied in and out.

The interpreter plans its own memory, so tensors are copied through views that live no longer than the copy: while one
is alive the interpreter refuses to run.
"""

from __future__ import annotations

import base64
import contextlib
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.core.errors import BadBundle, MissingExtra, one_line
from edgekit.core.manifest import Part, Tensor
from edgekit.runtime.backends import Array, Options
from edgekit.runtime.backends._mapped import WORTH_A_FILE, opened_from_file

# A model that doubles four numbers, zlib and base 64: building an interpreter over it tells whether a runtime works.

TINY = (
    "eNpdTzEKwkAQnDNBDwwhhAgWFv5BC0srK0sLS4UEDaI2AfUHvsVX+ZM4e7ckhxvmdnM3s7tjAew228WnbduC9YpYE3sDRMwDYk4k"
    "kBjCIuYJnh5Cf1M7YlGVp+pSN6AUhXtKMWWVUS26VO9nxIEoibP2uR7rmyhCrWTRjgMtY5JpHbvPa4zuCs0mgESk85aup/jJnCfZ"
    "K1F/RrNwm8e903/pzwacVzAjdvfiD+7P9+y5zz+u6eaLr16T+zXzH15EGQU="
)

_STDERR = 2
Interpreter = Callable[..., Any]  # the class of either package
View = Callable[[], Array]


class TfliteRunner:
    """One interpreter, and which of its tensors belongs to which buffer."""

    def __init__(
        self,
        interpreter: Any,
        provider: str,
        file: str,
        reads: Sequence[Callable[[], None]],
        writes: Sequence[tuple[View, Array]],
    ) -> None:
        self.provider = provider
        self._invoke = interpreter.invoke
        self._file = file
        self._reads, self._writes = tuple(reads), tuple(writes)

    def run(self) -> None:
        """See backends.Runner."""
        try:
            for read in self._reads:
                read()
            self._invoke()
            for view, buffer in self._writes:
                np.copyto(buffer, view())
        except (RuntimeError, ValueError) as err:
            raise BadBundle(f"{self._file}: {self.provider} failed: {one_line(err)}") from err


def open_tflite(
    interpreter: Interpreter,
    provider: str,
    data: bytes,
    part: Part,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    options: Options,
) -> TfliteRunner:
    """Open a TFLite part on `options.threads` threads, with the delegates the runtime uses by default (XNNPACK).

    Raises BadBundle when the runtime refuses the part.
    """
    key = f"{part.backend} {part.sha256}"
    try:
        opened = options.opened.get(key)  # its tensors are filled before and read after every call
        if opened is None:
            opened = _interpreter(interpreter, data, options.threads)
    except (RuntimeError, ValueError) as err:
        raise BadBundle(f"{part.file}: {provider} refuses it: {one_line(err)[:300]}") from err
    given = _bound(opened, part, part.inputs, opened.get_input_details(), inputs)
    made = _bound(opened, part, part.outputs, opened.get_output_details(), outputs)
    options.opened[key] = opened
    reads = [_reader(opened, index, buffer) for index, buffer in given]
    writes = [(opened.tensor(index), buffer) for index, buffer in made]
    return TfliteRunner(opened, provider, part.file, reads, writes)


def _interpreter(interpreter: Interpreter, data: bytes, threads: int) -> Any:
    """An interpreter ready to run. It keeps its model's bytes, though XNNPACK repacks the weights: see _mapped.

    Only bytes are verified before they are read, so a large model is opened from them first; nothing is repacked yet.
    """
    opened = interpreter(model_content=data, num_threads=threads)
    if len(data) >= WORTH_A_FILE:
        mapped = opened_from_file(
            data, lambda path: _allocated(interpreter(model_path=path, num_threads=threads))
        )
        if mapped is not None:
            return mapped
    return _allocated(opened)


def _allocated(opened: Any) -> Any:
    opened.allocate_tensors()
    return opened


def check_works(interpreter: Interpreter, remedy: str) -> None:
    """Build an interpreter over a model that any runtime takes. Raises MissingExtra with `remedy` where that fails.

    The first interpreter of a process announces its delegate on the standard error stream: that is kept away from it.
    """
    with _nothing_on_stderr():
        broken = why_broken(interpreter)
    if broken is not None:
        raise MissingExtra(f"{remedy} (it is installed, but: {broken})")


def why_broken(interpreter: Interpreter) -> str | None:
    """What this runtime says of a model that any runtime takes; None where it runs it."""
    try:
        opened = interpreter(model_content=tiny_model(), num_threads=1)
        opened.allocate_tensors()
        opened.invoke()
    except Exception as err:  # noqa: BLE001  (with a numpy they do not know the runtimes raise anything)
        return one_line(err)[:200]
    return None


@contextlib.contextmanager
def _nothing_on_stderr() -> Iterator[None]:
    """Keep C code from writing there."""
    sys.stderr.flush()
    kept = os.dup(_STDERR)
    try:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), _STDERR)
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)


def tiny_model() -> bytes:
    """The model that why_broken tries: y = 2 x, both float32 of shape (1, 4)."""
    return zlib.decompress(base64.b64decode(TINY))


def _bound(
    opened: Any, part: Part, wanted: Sequence[Tensor], found: Sequence[Any], buffers: Mapping[str, Array]
) -> list[tuple[int, Array]]:
    """The interpreter's numbers of tensors with their buffers; all must be what the part says."""
    rows = [(str(row["name"]), np.dtype(row["dtype"]).name, tuple(map(int, row["shape"]))) for row in found]
    named = {part.in_file(tensor.name): tensor for tensor in wanted}
    if sorted(rows) != sorted((name, tensor.dtype, tensor.shape) for name, tensor in named.items()):
        raise BadBundle(f"{part.file}: the file's tensors are {rows}, not those its manifest lists")
    return [
        (int(row["index"]), buffers[named[name].name]) for row, (name, _, _) in zip(found, rows, strict=True)
    ]


def _reader(opened: Any, index: int, buffer: Array) -> Callable[[], None]:
    """What takes a buffer into one of the interpreter's tensors. A tensor of rank 0 has no view that can be written."""
    if buffer.ndim == 0:
        return lambda: opened.set_tensor(index, buffer)
    view: View = opened.tensor(index)
    return lambda: np.copyto(view(), buffer)
