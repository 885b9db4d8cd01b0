"""A linear tokenizer of video: boxes of pixels on their principal components. Fitted in closed form, in one pass over the data.

    tokens = (boxes - mean) @ components.T        (b n d)
    boxes  = tokens @ components + mean           (b n x)

A small generator of clips needs few numbers per token and a good decoder. Without training, this gives both wherever boxes are small
against what they show. It compresses less than a learned tokenizer and knows nothing beyond a box.

Letters: `b` batch, `c` channels, `t h w` a clip, `n` tokens, `d` components, `x` numbers of a box.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.tokenizers.base import Tokenizer, TokenizerOutput, check_pyramid


class PatchComponents(Tokenizer):
    """Clips to one level of continuous tokens, one per box of pixels, and back.

    Decoding gives the nearest box in the span of the components. Before `fit` the components are coordinate axes.

    Args:
        video_size: Frames, rows and columns of a clip.
        patch_size: Frames, rows and columns of a box; (1, p, p) is frame by frame.
        dim: Number of components.

    Raises:
        ValueError: If the box does not divide the clip, or holds fewer numbers than `dim`.
    """

    # A product with a matrix: nothing to compile.
    _decoding_modules = ()

    @register_to_config
    def __init__(
        self, *, video_size: Sequence[int] = (32, 32, 32), patch_size: Sequence[int] = (2, 4, 4), dim: int = 8
    ) -> None:
        super().__init__()
        if (
            len(video_size) != 3
            or len(patch_size) != 3
            or any(p < 1 or v % p for v, p in zip(video_size, patch_size, strict=True))
        ):
            raise ValueError(f"patch_size is {tuple(patch_size)}, expected divisors of video_size {tuple(video_size)}")
        numbers = 3 * patch_size[0] * patch_size[1] * patch_size[2]
        if not 1 <= dim <= numbers:
            raise ValueError(f"dim is {dim}, expected 1 to {numbers}, the numbers of a box")
        grid = tuple(v // p for v, p in zip(video_size, patch_size, strict=True))
        self._spec = LevelSpec(grid[0] * grid[1] * grid[2], grid, dim)
        # Parameters, so that they are saved and follow dtype and device; nothing trains them.
        self.mean = nn.Parameter(torch.zeros(numbers), requires_grad=False)
        self.components = nn.Parameter(torch.eye(dim, numbers), requires_grad=False)

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        return (self._spec,)

    @torch.no_grad()
    def fit(self, videos: Float[Tensor, "b c t h w"]) -> float:
        """Set mean and components from clips in [-1, 1]; return the share of the boxes' variance that the components hold.

        Raises:
            ValueError: If the clips have another size.
        """
        boxes = self._cut(videos).flatten(0, 1).double()
        mean = boxes.mean(dim=0)
        centered = boxes - mean
        values, vectors = torch.linalg.eigh(centered.T @ centered)
        chosen = vectors.flip(1)[:, : self._spec.dim].T
        # The sign of an eigenvector is arbitrary. The largest entry is made positive, so that machines agree.
        largest = chosen.gather(1, chosen.abs().argmax(dim=1, keepdim=True))
        self.components.copy_(chosen * largest.sign())
        self.mean.copy_(mean)
        return float(values.flip(0)[: self._spec.dim].sum() / values.sum())

    def encode(self, data: Float[Tensor, "b c t h w"], *, rng: torch.Generator | None = None) -> TokenPyramid:
        """Return the tokens of clips in [-1, 1]; nothing is drawn.

        Raises:
            ValueError: If the clips have another size.
            TypeError: If they are not floating point.
        """
        tokens = (self._cut(data).to(self.mean.dtype) - self.mean) @ self.components.T
        return TokenPyramid((tokens,), self.specs)

    def decode(self, pyramid: TokenPyramid) -> Float[Tensor, "b c t h w"]:
        """Return clips, not clamped.

        Raises:
            ValueError: If the pyramid comes from another tokenizer.
        """
        check_pyramid(pyramid, self.specs)
        boxes = pyramid.levels[0].to(self.mean.dtype) @ self.components + self.mean
        t, h, w = self._spec.grid or (1, 1, 1)
        p, q, r = self.config["patch_size"]
        return rearrange(
            boxes, "b (t h w) (c p q r) -> b c (t p) (h q) (w r)", t=t, h=h, w=w, p=p, q=q, r=r
        ).contiguous()

    def forward(self, data: Float[Tensor, "b c t h w"], *, rng: torch.Generator | None = None) -> TokenizerOutput:
        """Encode and decode."""
        pyramid = self.encode(data)
        return TokenizerOutput(self.decode(pyramid), pyramid)

    def _cut(self, videos: Tensor) -> Tensor:
        if tuple(videos.shape[1:]) != (3, *self.config["video_size"]):
            wanted = ", ".join(str(size) for size in self.config["video_size"])
            raise ValueError(f"videos have shape {tuple(videos.shape)}, expected (b, 3, {wanted})")
        if not videos.is_floating_point():
            raise TypeError(f"videos have dtype {videos.dtype}, expected floating point in [-1, 1]")
        p, q, r = self.config["patch_size"]
        return rearrange(videos, "b c (t p) (h q) (w r) -> b (t h w) (c p q r)", p=p, q=q, r=r)
