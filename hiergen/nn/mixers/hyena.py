"""Hyena on maps: gating, and causal convolutions as long as the map whose kernels a small network makes from positions.

    (x_0, ..., x_(o-1), v) = short(W_in x)                       short: a 3 x 3 depthwise convolution
    v = (v * x_(o-1-t)) conv K_t + D_t (v * x_(o-1-t))           for t = 0 ... o - 2
    y = W_out (v * x_0)

A plain convolution sees only what lies above *and* to the left. Any number of axes is taken: 1 is Hyena, 3 is for clips.

Letters: `b` batch, `c` channels, `e` features of a position, `f` channels of the kernels' network, `n` places of an axis.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hiergen.nn.mixers.base import TokenMixer, join_axes
from hiergen.nn.running.precision import widen, without_autocast

Directions = Literal["standard", "sequential", "four", "four_projected"]
Window = Literal["fixed", "learned", "root", "none"]


class HyenaMixer(TokenMixer):
    """Hyena N-D, of any map size.

    Args:
        dim: Channels of a token.
        axes: Axes of the map, 1 to 3; maps are then `(b, *sides, c)`.
        order: Number of gates; there is one convolution less.
        kernel: "joint" makes the kernel from the positions on all axes at once; "product" multiplies one kernel per axis.
        directions: "standard" looks up and left. "sequential" turns the map by 180 degrees for the first convolution, which with order 2
            only looks down and right instead. "four" adds up all directions with one learned weight each, "four_projected" by a linear
            layer of their channels.
        window: How kernels decay with distance: at "fixed" rates, at "learned" ones, by the square root of the fixed decay ("root",
            joint kernels only), or not at all.
        filter_dim: Channels of the network that makes the kernels.
        official_scale: Divide kernels by twice the side of the map, as the official transform does by mistake; square maps only.

    Raises:
        ValueError: If an option is unknown, or two do not go together.

    Source:
        Hyena N-D, arXiv:2309.13600; Hyena, arXiv:2302.10866.
    """

    def __init__(
        self,
        dim: int,
        *,
        axes: int = 2,
        order: int = 2,
        kernel: Literal["joint", "product"] = "joint",
        directions: Directions = "four_projected",
        window: Window = "fixed",
        filter_dim: int = 64,
        official_scale: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= axes <= 3:
            raise ValueError(f"axes is {axes}, expected 1 to 3")
        if order < 2:
            raise ValueError(f"order is {order}, expected at least 2")
        for name, value, known in (
            ("kernel", kernel, ("joint", "product")),
            ("directions", directions, get_args(Directions)),
            ("window", window, get_args(Window)),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}, expected one of {known}")
        if window == "root" and kernel == "product":
            raise ValueError("window is 'root', expected another with kernel='product'")
        self.axes, self.order, self.directions, self.official_scale = axes, order, directions, official_scale
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        inner = (order + 1) * dim
        self.proj_in = nn.Linear(dim, inner)
        self.short = convolution(inner, inner, 3, padding=1, groups=inner)
        self.kernels = _Kernels(dim * (order - 1), axes, filter_dim, is_joint=kernel == "joint", window=window)
        self.skip = nn.Parameter(torch.randn(order - 1, dim))
        self.proj_out = nn.Linear(dim, dim)
        self.mix: nn.Linear | None = None
        count = 2**axes
        if directions.startswith("four"):
            self.mix = nn.Linear(count, 1) if directions == "four" else nn.Linear(count * dim, dim)

    def forward(self, x: Float[Tensor, "b *sides c"]) -> Float[Tensor, "b *sides c"]:
        if x.ndim != self.axes + 2:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected a batch, {self.axes} axes and channels")
        sides = x.shape[1:-1]
        kernels = self.kernels(sides).unflatten(0, (self.order - 1, -1))
        if self.official_scale:
            if len(set(sides)) > 1:
                raise ValueError(f"the map has sides {tuple(sides)}, expected equal ones with official_scale")
            kernels = kernels / (2 * sides[0])
        *gates, value = self.short(self.proj_in(x).movedim(-1, 1)).chunk(self.order + 1, dim=1)
        for step in range(self.order - 1):
            value = self._convolve(value * gates[self.order - 1 - step], kernels[step], step)
        return self.proj_out((value * gates[0]).movedim(1, -1))

    def _convolve(self, x: Float[Tensor, "b c *sides"], kernel: Tensor, step: int) -> Tensor:
        places = tuple(range(2, x.ndim))
        skip = self.skip[step].view(-1, *(1 for _ in places))
        if self.mix is None:
            turns: tuple[tuple[int, ...], ...] = (places if self.directions == "sequential" and step == 0 else (),)
        else:
            turns = tuple(itertools.chain(*(itertools.combinations(places, n) for n in range(len(places) + 1))))
        parts = [_causal_convolution(x.flip(turn), kernel).flip(turn) + skip * x for turn in turns]
        if self.mix is None:
            return parts[0]
        if self.directions == "four":
            return self.mix(torch.stack(parts, dim=-1)).squeeze(-1)
        return self.mix(torch.cat(parts, dim=1).movedim(1, -1)).movedim(-1, 1)

    def reach(self, height: int, width: int) -> Bool[Tensor, "n n"] | None:
        if self.mix is not None or (self.directions == "sequential" and self.order > 2):
            return None
        # The short convolution sees one further.
        axes = [torch.ones(length, length, dtype=torch.bool).tril(1) for length in (height, width)]
        seen = join_axes(*axes)
        return seen.T if self.directions == "sequential" else seen


class _Kernels(nn.Module):
    """Positions of a map -> kernels `(c, *sides)`, by networks with sine activations, times windows."""

    def __init__(self, channels: int, axes: int, width: int, *, is_joint: bool, window: Window) -> None:
        super().__init__()
        features = 3
        self.is_joint, self.window, self.axes = is_joint, window, axes
        self.networks = nn.ModuleList(
            _SineNetwork(features * axes if is_joint else features, width, channels)
            for _ in range(1 if is_joint else axes)
        )
        # One for all layers of all networks.
        self.frequency = nn.Parameter(torch.ones(width))
        decay = torch.linspace(math.log(0.01) / 1.5, math.log(0.01) / 0.3, channels)
        if window != "none":
            self.decay = nn.Parameter(decay.repeat(axes, 1), requires_grad=window == "learned")
            self.shift = nn.Parameter(torch.zeros(axes), requires_grad=window == "learned")

    def forward(self, sides: torch.Size) -> Float[Tensor, " c *sides"]:
        first = next(self.networks.parameters())
        with without_autocast(first.device):
            lines = [_features(length, first) for length in sides]
            kernel: Tensor
            if self.is_joint:
                grids = [
                    line.expand(*sides, 3)
                    for line in (_stand(line, axis, self.axes) for axis, line in enumerate(lines))
                ]
                kernel = self.networks[0](torch.cat(grids, dim=-1).to(first.dtype), self.frequency)
            else:
                kernel = torch.ones((), device=first.device, dtype=lines[0].dtype)
                for axis, (line, network) in enumerate(zip(lines, self.networks, strict=True)):
                    kernel = kernel * _stand(network(line.to(first.dtype), self.frequency), axis, self.axes)
            if self.window != "none":
                for axis, line in enumerate(lines):
                    fall = (-line[:, :1] * widen(self.decay[axis]).abs()).exp() + widen(self.shift[axis])
                    kernel = kernel * _stand(fall.sqrt() if self.window == "root" else fall, axis, self.axes)
            return kernel.movedim(-1, 0)


class _SineNetwork(nn.Module):
    """Three linear layers with sin(w x) behind each, the same w for all, then a linear layer without bias."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList((nn.Linear(inputs, width), nn.Linear(width, width), nn.Linear(width, width)))
        self.last = nn.Linear(width, outputs, bias=False)

    def forward(self, x: Float[Tensor, "*n e"], frequency: Float[Tensor, " f"]) -> Float[Tensor, "*n c"]:
        for layer in self.layers:
            x = (frequency * layer(x)).sin()
        return self.last(x)


def _features(length: int, like: Tensor) -> Float[Tensor, "n e"]:
    """Return what a network reads of the places of an axis: 0 to 1, and one slow turn of the circle."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    places = torch.arange(length, device=like.device, dtype=dtype)
    angle = 1e-4 * 2 * math.pi * places / length
    return torch.stack(
        (torch.linspace(0, 1, length, device=like.device, dtype=dtype), angle.cos(), -angle.sin()), dim=-1
    )


def _stand(line: Float[Tensor, "n e"], axis: int, axes: int) -> Tensor:
    """Return the values of an axis as a map that is 1 wide along the others."""
    return line.view(*(line.shape[0] if place == axis else 1 for place in range(axes)), line.shape[1])


def _causal_convolution(x: Float[Tensor, "b c *sides"], kernel: Float[Tensor, " c *sides"]) -> Tensor:
    """Return the full convolution at its first places, computed in float32 at least."""
    sides = x.shape[2:]
    with without_autocast(x.device):
        doubled, places = [2 * side for side in sides], tuple(range(-len(sides), 0))
        spectrum = torch.fft.rfftn(widen(x), s=doubled, dim=places) * torch.fft.rfftn(
            widen(kernel), s=doubled, dim=places
        )
        whole = torch.fft.irfftn(spectrum, s=doubled, dim=places)
    return whole[(..., *(slice(side) for side in sides))].to(x.dtype)
