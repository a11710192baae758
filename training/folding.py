"""Networks rewritten for inference: the same function in fewer and cheaper operations.

    convolution, batch norm        ->  one convolution
    batch norm, linear             ->  one linear layer
    doubling, 3x3 convolution      ->  one sub-pixel convolution, with 16 products where there were 36
    transposed 4x4 convolution     ->  the same, as int8 has kernels for convolutions alone

What is trained and checked against stays as it is; this is made of a copy just before it is exported. A doubling whose
last row or column is cropped is left as it is: behind the crop the convolution sees zeros, which no smaller image has.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import fusion

from training.networks.conv import ConvDecoder, Upsample
from training.networks.dropout import Dropout
from training.networks.plain import Enlarge
from training.networks.scales import Size

Network = TypeVar("Network", bound=nn.Module)

# What the two taps of a phase see of a kernel of 3 on doubled pixels: the first phase the pixel before and its own,
# the second its own and the one after.
_TAPS = torch.tensor([[[1.0, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
# The same of a transposed convolution's kernel of 4, whose taps each belong to one phase.
_TRANSPOSED_TAPS = torch.tensor([[[0.0, 0, 0, 1], [0, 1, 0, 0]], [[0, 0, 1, 0], [1, 0, 0, 0]]])


class SubPixel(nn.Module):
    """x (N, C, H, W) -> (N, O, 2 H, 2 W), less what is beyond `size`: four small convolutions, one for each phase of
    the larger image, shuffled into it (Shi et al. 2016, section 3.2).

    `taps` (phase, tap, K) says what each tap of a phase is of a kernel with K rows and columns; `weight` is
    (O, C, K, K). The convolution's grid has one more row and column than x, and each of its cells holds the second
    phase of one pixel and the first of the next, so that a frame of one pixel is cut off.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, taps: Tensor, size: Size) -> None:
        super().__init__()
        outer, inner = weight.shape[:2]
        self.size = size
        self.conv = nn.Conv2d(inner, 4 * outer, 2, padding=1)
        shuffled = taps.flip(0).to(weight.dtype)
        kernels = torch.einsum("ptk,ockl,qsl->opqcts", shuffled, weight, shuffled)
        self.conv.weight = nn.Parameter(kernels.flatten(0, 2))
        zeros = weight.new_zeros(outer) if bias is None else bias
        self.conv.bias = nn.Parameter(zeros.repeat_interleave(4))

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.size
        return functional.pixel_shuffle(self.conv(x), 2)[:, :, 1 : height + 1, 1 : width + 1]


@torch.no_grad()
def folded(network: Network) -> Network:
    """A copy of an encoder or a decoder in evaluation mode that gives the same, up to rounding, and is quicker."""
    network = copy.deepcopy(network).eval()
    if isinstance(network, ConvDecoder):  # its last convolution follows on what is in the sequence
        network.features.append(network.output)
        network.output = cast(nn.Conv2d, nn.Identity())
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Sequential):
                setattr(module, name, nn.Sequential(*_folded(list(child))))
    return network.requires_grad_(False)


def _folded(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """The layers of a sequence, each joined with those before it where the two are one."""
    done: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, Dropout):
            continue
        before = done[-1] if done else None
        joined = None if before is None else _joined(before, layer)
        if joined is not None:
            done.pop()
        done.append(joined or _alone(layer))
    return _with_subpixels(done)


def _alone(layer: nn.Module) -> nn.Module:
    if isinstance(layer, Enlarge) and layer.conv.stride == (2, 2):
        weight = layer.conv.weight.transpose(0, 1)
        return SubPixel(weight, layer.conv.bias, _TRANSPOSED_TAPS, layer.large)
    return layer


def _joined(first: nn.Module, second: nn.Module) -> nn.Module | None:
    """One layer that does what the two do; None if there is none such."""
    if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
        return fusion.fuse_conv_bn_eval(first, second)
    if isinstance(first, nn.BatchNorm1d) and isinstance(second, nn.Linear):
        return _norm_linear(first, second)
    return None


def _with_subpixels(layers: list[nn.Module]) -> list[nn.Module]:
    """Batch norms are in the convolutions by now."""
    done: list[nn.Module] = []
    for layer in layers:
        before = done[-1] if done else None
        if isinstance(before, Upsample) and before.is_whole and isinstance(layer, nn.Conv2d):
            done[-1] = SubPixel(layer.weight, layer.bias, _TAPS, before.large)
        else:
            done.append(layer)
    return done


def _norm_linear(norm: nn.BatchNorm1d, linear: nn.Linear) -> nn.Linear:
    """W (a x + b) + c, as a linear layer."""
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = norm.weight / torch.sqrt(variance + norm.eps)
    joined = nn.Linear(linear.in_features, linear.out_features)
    joined.weight = nn.Parameter(linear.weight * scale)
    joined.bias = nn.Parameter(linear.bias + linear.weight @ (norm.bias - mean * scale))
    return joined
