"""Group-level pruning: the same places of the kernel in all filters, so that a smaller matrix is multiplied.

Lebedev, Lempitsky 2016 (arXiv 1506.02515); Wen et al. 2016 (arXiv 1608.03665). A place is (channel, row, column); its
score is the norm of its column over all filters. What is left of a convolution is a dense matrix [out, places] on the
gathered columns of its input. Whether that is faster hangs on the gather: tools/bench/group_pruning.py measures.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.core.errors import BadInput

_RANK = 4


def keep_positions(weight: Tensor, share: float) -> Tensor:
    """1 where a weight [out, channels, rows, columns] stays: exactly round(share * places) places go, ties by order."""
    if weight.ndim != _RANK:
        raise BadInput(f"group pruning: wants a convolution's weight, got {list(weight.shape)}")
    scores = weight.detach().square().sum(0).flatten()
    mask = torch.ones_like(scores)
    mask[torch.sort(scores, stable=True)[1][: round(share * scores.numel())]] = 0
    return mask.reshape(1, *weight.shape[1:]).expand_as(weight).clone()


def group_lasso(weights: list[nn.Parameter]) -> Tensor:
    """The sum of the places' norms, which draws whole places to zero (Yuan, Lin 2006)."""
    return torch.stack([weight.square().sum(0).clamp(min=1e-16).sqrt().sum() for weight in weights]).sum()


class PositionConv2d(nn.Module):
    """A convolution of what is left: a gather of columns and a product with [out, places].

    Where all places of some channels are gone, those channels are not read; where the places that are left fill the
    rest of the kernel, it is a plain convolution on fewer channels.
    """

    channels: Tensor
    places: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        if conv.groups != 1 or isinstance(conv.padding, str) or conv.padding_mode != "zeros":
            raise BadInput(f"group pruning: wants a plain convolution of one group, got {conv}")
        left = (conv.weight.detach() != 0).any(0)
        if not left.any():
            raise BadInput("group pruning: nothing is left of a convolution: take a smaller share")
        read = left.flatten(1).any(1).nonzero().flatten()
        self.register_buffer("channels", read)
        self.register_buffer("places", left[read].flatten().nonzero().flatten())
        self.kernel, self.stride = conv.kernel_size, conv.stride
        self.padding, self.dilation = conv.padding, conv.dilation
        self.all_channels = len(read) == conv.in_channels
        self.whole = len(self.places) == left[read].numel()
        kept = conv.weight.detach()[:, read]
        self.weight = nn.Parameter(kept.clone() if self.whole else kept.flatten(1)[:, self.places].clone())
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())

    @property
    def depth(self) -> int:
        """Terms of one sum: the matrix product's K."""
        return len(self.places)

    def forward(self, value: Tensor) -> Tensor:
        value = value if self.all_channels else value.index_select(1, self.channels)
        if self.whole:
            return functional.conv2d(value, self.weight, self.bias, self.stride, self.padding, self.dilation)
        high, wide = (
            (size + 2 * around - spread * (window - 1) - 1) // step + 1
            for size, around, spread, window, step in zip(
                value.shape[2:], self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        columns = functional.unfold(value, self.kernel, self.dilation, self.padding, self.stride)
        made = torch.matmul(self.weight, columns.index_select(1, self.places))
        made = made if self.bias is None else made + self.bias[:, None]
        return made.reshape(value.shape[0], -1, high, wide)


def compact(module: nn.Module) -> nn.Module:
    """Exchange each convolution that has lost places of its kernel for what is left of it; the same object."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Conv2d and child.groups == 1:
            if not bool((child.weight != 0).any(0).all()):
                setattr(module, name, PositionConv2d(child))
        else:
            compact(child)
    return module
