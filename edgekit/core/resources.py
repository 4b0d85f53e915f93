"""Find the data files that ship with edgekit: board profiles and the demo model. Reads no file's content."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.resources import files

from edgekit.core.errors import BadInput

if sys.version_info >= (3, 11):
    from importlib.resources.abc import Traversable
else:
    from importlib.abc import Traversable

DEMO_MODEL = "fashion_mnist_3exit.onnx"


def device_profile_files() -> Mapping[str, Traversable]:
    """Profile name -> its TOML file, sorted by name. An editable install serves the checkout's own files."""
    entries = files("edgekit.device_profiles").iterdir()
    found = {entry.name.removesuffix(".toml"): entry for entry in entries if entry.name.endswith(".toml")}
    return dict(sorted(found.items()))


def demo_model_file() -> Traversable:
    """The three-exit ONNX file that `edgekit demo` converts. Raises BadInput where it was not packaged."""
    try:
        model = files("edgekit.models") / DEMO_MODEL
    except ModuleNotFoundError:
        model = None
    if model is None or not model.is_file():
        raise BadInput(f"the demo model models/{DEMO_MODEL} is not part of this installation")
    return model
