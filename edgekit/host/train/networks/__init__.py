"""Networks of ours by name: a frozen config and a module made from it. Training them is not done here.

A module's forward takes [N, C, H, W] and gives logits per exit or Outputs (host/train/outputs.py). A config's defaults
are ours for images of 28x28x1 and ten classes; the papers' own are in the module's file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from edgekit.core.errors import BadInput
from edgekit.host.train.networks import (
    cnv,
    condensenet,
    iamnn,
    iamnn_plan,
    lenet,
    lfc,
    mobilenet,
    msdnet,
    msdnet_plan,
    resnet,
    shufflenet,
    small,
    squeezenet,
    vgg,
    wide_resnet,
)


@dataclass(frozen=True)
class Kind:
    """config: the dataclass that describes one network of this kind; module: what makes it."""

    config: Callable[[], Any]
    module: Callable[[Any], nn.Module]


NETWORKS: Mapping[str, Kind] = {
    "small": Kind(small.Config, small.Small),
    "small-wide": Kind(small.Wide, small.Small),
    "lenet-300-100": Kind(lenet.Dense, lenet.LeNet300),
    "lenet-5": Kind(lenet.Convolutions, lenet.LeNet5),
    "resnet20": Kind(resnet.Config, resnet.ResNet),
    "squeezenet": Kind(squeezenet.Config, squeezenet.SqueezeNet),
    "shufflenet": Kind(shufflenet.Config, shufflenet.ShuffleNet),
    "wide-resnet": Kind(wide_resnet.Config, wide_resnet.WideResNet),
    "condensenet": Kind(condensenet.Config, condensenet.CondenseNet),
    "vgg": Kind(vgg.Config, vgg.VGG),
    "mobilenet": Kind(mobilenet.Config, mobilenet.MobileNet),
    "msdnet": Kind(msdnet_plan.Config, msdnet.MSDNet),
    "iamnn": Kind(iamnn_plan.Config, iamnn.IamNN),
}

# With binary weights and activations: they take pixels 0-255 and are exported by host/train/to_qonnx.py.
BINARY_NETWORKS: Mapping[str, Kind] = {
    "small": Kind(small.Config, small.Small),
    "small-wide": Kind(small.Wide, small.Small),
    "lfc": Kind(lfc.Config, lfc.LFC),
    "cnv": Kind(cnv.Config, cnv.CNV),
}


def build(name: str, config: Any = None) -> nn.Module:
    """A network of this name with fresh weights from PyTorch's generator; config None: the kind's defaults.

    Raises BadInput for a name that is not known, a config of another kind, or one that makes no network.
    """
    known = {**NETWORKS, **BINARY_NETWORKS}
    if name not in known:
        raise BadInput(f"network must be one of {', '.join(known)}, got {name!r}")
    kind = known[name]
    config = kind.config() if config is None else config
    if type(config) is not kind.config:
        raise BadInput(
            f"network {name} wants its own Config, got {type(config).__module__}.{type(config).__name__}"
        )
    return kind.module(config)
