"""The TFLite backends: buffers of the Session, threads, and a runtime that is installed but does not work."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.core.errors import BadBundle, MissingExtra
from edgekit.core.manifest import Part, Tensor
from edgekit.runtime.backends import Options
from edgekit.runtime.backends._tflite import (
    TfliteRunner,
    check_works,
    open_tflite,
    tiny_model,
    why_broken,
)

X, Y = Tensor("x", "float32", (1, 4)), Tensor("y", "float32", (1, 4))


def tiny_part() -> Part:
    return Part("litert", "stages/0.tflite", hashlib.sha256(tiny_model()).hexdigest(), (X,), (Y,))


class NotWithThisNumpy:
    """As tflite-runtime behaves under numpy 2: it imports, and fails when a model is opened."""

    def __init__(self, **settings: Any) -> None:
        raise SystemError("_ARRAY_API not found")


def opened(interpreter: Any, options: Options | None = None) -> TfliteRunner:
    x, y = np.ones((1, 4), np.float32), np.zeros((1, 4), np.float32)
    args = (tiny_model(), tiny_part(), {"x": x}, {"y": y}, options or Options())
    return open_tflite(interpreter, "some runtime", *args)


def test_a_runtime_that_opens_no_model_at_all_is_said_to_be_missing_with_what_to_install() -> None:
    with pytest.raises(MissingExtra, match=r"pip install it .*_ARRAY_API not found"):
        check_works(NotWithThisNumpy, "some runtime needs: pip install it")


def test_a_runtime_that_works_has_nothing_broken() -> None:
    module = pytest.importorskip("ai_edge_litert.interpreter")
    check_works(module.Interpreter, "pip install it")
    assert why_broken(module.Interpreter) is None


def test_opening_parts_writes_nothing_on_the_standard_error_stream() -> None:
    pytest.importorskip("ai_edge_litert")
    code = (
        "import runpy, sys; sys.path.insert(0, sys.argv[1])\n"
        "import edgekit.runtime.backends.litert as backend\n"
        "module = runpy.run_path(sys.argv[2])\n"
        "module['opened'](backend.Interpreter).run()\n"
    )
    here = Path(__file__)
    command = [sys.executable, "-c", code, str(here.parents[2]), str(here)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_the_interpreter_gets_the_sessions_threads() -> None:
    module = pytest.importorskip("ai_edge_litert.interpreter")
    seen = []

    def watched(**settings: Any) -> Any:
        seen.append(settings["num_threads"])
        return module.Interpreter(**settings)

    opened(watched, Options(threads=2))
    assert seen == [2]


def test_a_failing_run_is_a_bad_bundle() -> None:
    pytest.importorskip("ai_edge_litert")

    class Fails:
        def invoke(self) -> None:
            raise RuntimeError("operator\nfailed")

    runner = TfliteRunner(Fails(), "LiteRT", "stages/0.tflite", (), ())
    with pytest.raises(BadBundle, match=r"stages/0.tflite: LiteRT failed: operator failed"):
        runner.run()


def test_a_backend_whose_package_is_absent_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['ai_edge_litert'] = sys.modules['tflite_runtime'] = None\n"
        "from edgekit.core.errors import MissingExtra\n"
        "from edgekit.runtime.backends import opener\n"
        "for name in ('litert', 'tflite-runtime'):\n"
        "    try: opener(name)\n"
        "    except MissingExtra as err: print(err)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert "pip install 'edgekit[litert]'" in first
    assert "numpy<2" in second
