"""The converter: a model in, a bundle that fits one board out. Never imported by what a board installs."""

import edgekit.runtime.quiet_ort  # noqa: F401  # first of all: whatever here imports onnxruntime's tools gets it quiet
