"""Videos through an image tokenizer, frame by frame: the tokens of a clip are those of its frames, on one grid.

Letters: `b` batch, `c` channels, `t h w` a clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.tokenizers.base import Tokenizer, TokenizerOutput, check_pyramid
from hiergen.tokenizers.hieratok.model import HieraTok


class FrameTokenizer(Tokenizer):
    """Clips to one level of continuous tokens on a grid of frames, rows and columns, and back.

    Frames know nothing of each other: what happens over time is left to the generator. A clip has `num_frames` times as many tokens as a
    frame.

    Args:
        num_frames: Frames of a clip.
        frame: Config of the `HieraTok` that every frame goes through; it must have one level.

    Raises:
        ValueError: If `num_frames` is below 1 or the frame's tokenizer has several levels.
    """

    _decoding_modules = ("frame_tokenizer.decoder",)

    @register_to_config
    def __init__(self, *, num_frames: int = 16, frame: Mapping[str, Any]) -> None:
        super().__init__()
        if num_frames < 1:
            raise ValueError(f"num_frames is {num_frames}, expected at least 1")
        self.frame_tokenizer = HieraTok(**frame)
        levels = self.frame_tokenizer.specs
        if len(levels) != 1:
            raise ValueError(f"frame is a tokenizer of {len(levels)} levels, expected one")
        self._spec = LevelSpec(num_frames * levels[0].num_tokens, (num_frames, *(levels[0].grid or ())), levels[0].dim)

    @classmethod
    def of(cls, tokenizer: HieraTok, num_frames: int) -> FrameTokenizer:
        """Return the tokenizer of clips that puts every frame through a trained tokenizer of images."""
        config = {name: value for name, value in tokenizer.config.items() if not name.startswith("_")}
        made = cls(num_frames=num_frames, frame=config)
        made.frame_tokenizer.load_state_dict(tokenizer.state_dict())
        return made.to(device=tokenizer.device, dtype=tokenizer.dtype).train(tokenizer.training)

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        return (self._spec,)

    @property
    def frame_size(self) -> int:
        """Height and width of a frame in pixels."""
        return self.frame_tokenizer.config["image_size"]

    def encode(self, data: Float[Tensor, "b c t h w"], *, rng: torch.Generator | None = None) -> TokenPyramid:
        """Return the tokens of clips in [-1, 1]: a sample drawn by `rng`, or without one the mode.

        Raises:
            ValueError: If the clips have another number of frames or another size.
            TypeError: If they are not floating point.
        """
        return self._join(self.frame_tokenizer.encode(self._frames(data), rng=rng))

    def decode(self, pyramid: TokenPyramid) -> Float[Tensor, "b c t h w"]:
        """Return clips, not clamped.

        Raises:
            ValueError: If the pyramid comes from another tokenizer.
        """
        frames = self.frame_tokenizer.decode(self.split(pyramid))
        return rearrange(frames, "(b t) c h w -> b c t h w", t=self.config["num_frames"])

    def split(self, pyramid: TokenPyramid) -> TokenPyramid:
        """Return the tokens of clips as the tokens of their `b t` frames.

        Raises:
            ValueError: If the pyramid comes from another tokenizer.
        """
        check_pyramid(pyramid, self.specs)
        tokens = rearrange(pyramid.levels[0], "b (t n) d -> (b t) n d", t=self.config["num_frames"])
        return TokenPyramid((tokens,), self.frame_tokenizer.specs)

    def forward(self, data: Float[Tensor, "b c t h w"], *, rng: torch.Generator | None = None) -> TokenizerOutput:
        """Encode and decode with gradients. The losses are those of the frames; there are no features."""
        output = self.frame_tokenizer(self._frames(data), rng=rng)
        clips = rearrange(output.reconstruction, "(b t) c h w -> b c t h w", t=self.config["num_frames"])
        return TokenizerOutput(clips, self._join(output.pyramid), output.losses)

    def _frames(self, data: Tensor) -> Tensor:
        count, size = self.config["num_frames"], self.frame_size
        if tuple(data.shape[1:]) != (3, count, size, size):
            raise ValueError(f"videos have shape {tuple(data.shape)}, expected (b, 3, {count}, {size}, {size})")
        return rearrange(data, "b c t h w -> (b t) c h w")

    def _join(self, frames: TokenPyramid) -> TokenPyramid:
        tokens = rearrange(frames.levels[0], "(b t) n d -> b (t n) d", t=self.config["num_frames"])
        return TokenPyramid((tokens,), self.specs)
