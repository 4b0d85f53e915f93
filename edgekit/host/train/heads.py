"""Early heads with a convolution, fitted by gradient to what the network itself answers. Reads no label."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.core.errors import BadInput
from edgekit.host.exits.heads import STRIDE, Head, Seen
from edgekit.host.train.fit import Batch, Gradient, Models, fit
from edgekit.host.train.schedules import warm_cosine
from edgekit.host.watch import Watch, unwatched

_RATE, _DECAY = 3e-3, 1e-5
BATCH = 64
_PART = 256  # samples whose maps are float32 at once
_HEAD = "head"
_TINY = 1e-6


class _Module(nn.Module):
    """Convolution, ReLU, average and maximum over positions, linear layer."""

    def __init__(self, channels: int, hidden: int, classes: int, window: tuple[int, int]) -> None:
        super().__init__()
        stride = tuple(STRIDE if size > 1 else 1 for size in window)
        around = tuple(size // 2 for size in window)
        self.conv = nn.Conv2d(channels, hidden, window, stride, around)
        self.linear = nn.Linear(2 * hidden, classes)

    def forward(self, tensors: Tensor) -> Tensor:
        maps = functional.relu(self.conv(tensors))
        return self.linear(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1))


@dataclass(frozen=True)
class _Samples:
    """What a cut's maps were, in units of each channel's size, and what the network answered."""

    tensors: Tensor  # float16
    wanted: Tensor
    unit: Tensor  # float32 [1, channels, 1, 1]

    @property
    def count(self) -> int:
        return len(self.tensors)

    def take(self, indices: Tensor, random: torch.Generator) -> Batch:
        del random
        return {"x": self.tensors[indices].float() / self.unit, "wanted": self.wanted[indices]}


def fit_convolution(
    seen: Seen,
    hidden: int,
    window: tuple[int, int],
    epochs: int,
    seed: int,
    threads: int,
    watch: Watch = unwatched,
) -> Head:
    """A head with a convolution to `hidden` channels, its kernel [hidden, channels, *window]; the seed's to the bit.

    Cross entropy against the network's probabilities (Hinton, Vinyals, Dean 2015, 1503.02531, at temperature 1), Adam.
    """
    if seen.maps is None:
        raise BadInput("a head with a convolution wants the maps it reads, not only their averages")
    tensors = torch.from_numpy(seen.maps)
    parts = [
        part.float().square().mean((2, 3), keepdim=True).sum(0, keepdim=True) for part in tensors.split(_PART)
    ]
    size = (torch.cat(parts).sum(0, keepdim=True) / len(tensors)).sqrt()
    samples = _Samples(
        tensors, torch.from_numpy(seen.wanted), size.clamp_min(_TINY * float(size.max()) + 1e-12)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _Module(tensors.shape[1], hidden, seen.wanted.shape[1], window)
    update = Gradient(torch.optim.Adam(module.parameters(), lr=_RATE, weight_decay=_DECAY))
    fit(
        samples,
        {_HEAD: module},
        {"answers": _cross_entropy},
        update,
        {"lr": warm_cosine(0.1)},
        epochs=epochs,
        batch=BATCH,
        seed=seed,
        threads=threads,
        watch=watch,
        what="fit a head",
    )
    with torch.no_grad():
        kernel = (module.conv.weight / (samples.unit * seen.unit)).numpy()
        bias, offset = module.conv.bias.numpy(), module.linear.bias.numpy()
        return Head(module.linear.weight.T.contiguous().numpy(), offset, kernel, bias)


def _cross_entropy(models: Models, batch: Batch) -> Tensor:
    made = functional.log_softmax(models[_HEAD](batch["x"]), dim=1)
    return -(batch["wanted"] * made).sum(1).mean()
