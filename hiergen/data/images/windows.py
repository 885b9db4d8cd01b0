"""Pictures of any size as overlapping square windows, and back without seams, for tokenizers of one size.

Letters: `b` picture, `n` windows of all pictures, `c h w` picture, `s` side of a window.
"""

from __future__ import annotations

import dataclasses
import math
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hiergen.checked import Checked, Count, CountOrZero


@dataclasses.dataclass(frozen=True)
class Windows(Checked):
    """Overlapping windows, evenly spread from edge to edge of a picture.

    Attributes:
        size: Side of a window, in pixels.
        overlap: Smallest overlap of neighbors, in pixels; less than `size`. Within it one window fades into the next.

    Raises:
        ValueError: If the overlap is not less than the size.
    """

    size: Count = 64
    overlap: CountOrZero = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlap >= self.size:
            raise ValueError(f"overlap is {self.overlap}, expected less than size={self.size}")

    def cut(self, pictures: Float[Tensor, "b c h w"]) -> Float[Tensor, "n c s s"]:
        """Return the windows of every picture, row by row; a picture that is smaller than a window is continued by its last pixels."""
        height, width = pictures.shape[-2:]
        padding = (0, max(0, self.size - width), 0, max(0, self.size - height))
        pictures = F.pad(pictures, padding, mode="replicate")
        cut = [pictures[..., y : y + self.size, x : x + self.size] for y, x in self._corners(height, width)]
        return torch.stack(cut, dim=1).flatten(0, 1)

    def join(self, windows: Float[Tensor, "n c s s"], height: int, width: int) -> Float[Tensor, "b c {height} {width}"]:
        """Return pictures of their windows: a weighted mean where these overlap.

        Raises:
            ValueError: If the number of windows is no multiple of what a picture of this size has, or they are of another size.
        """
        corners = self._corners(height, width)
        if len(windows) % len(corners) or windows.shape[-2:] != (self.size, self.size):
            raise ValueError(
                f"windows is {tuple(windows.shape)}, expected a multiple of {len(corners)} windows of side {self.size} for pictures of "
                f"{height} x {width}"
            )
        fade = self._fade().to(windows)
        parts = windows.unflatten(0, (-1, len(corners)))
        total = windows.new_zeros(len(parts), windows.shape[1], max(height, self.size), max(width, self.size))
        weight = torch.zeros_like(total[:1, :1])
        for index, (y, x) in enumerate(corners):
            total[..., y : y + self.size, x : x + self.size] += parts[:, index] * fade
            weight[..., y : y + self.size, x : x + self.size] += fade
        return (total / weight)[..., :height, :width]

    def count(self, height: int, width: int) -> int:
        """Return how many windows a picture has."""
        return len(self._corners(height, width))

    def _corners(self, height: int, width: int) -> list[tuple[int, int]]:
        return list(product(self._starts(height), self._starts(width)))

    def _starts(self, length: int) -> list[int]:
        last = max(0, length - self.size)
        steps = math.ceil(last / (self.size - self.overlap))
        return [round(last * k / steps) for k in range(steps + 1)] if steps else [0]

    def _fade(self) -> Tensor:
        # Highest in the middle, never 0: at a picture's edge one window is all there is.
        distance = torch.arange(self.size).add(0.5)
        ramp = torch.minimum(distance, self.size - distance).div(max(self.overlap, 1)).clamp(max=1)
        return ramp[:, None] * ramp
