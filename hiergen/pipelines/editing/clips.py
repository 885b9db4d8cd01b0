"""From the first frames of a clip to the rest of it.

Letters: `b` batch, `c` channels, `t h w` a clip.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from hiergen.data.images.processor import ImageProcessor
from hiergen.known import Known
from hiergen.pipelines.arguments import Labels, check_output_type
from hiergen.pipelines.base import HiergenPipeline, moved
from hiergen.pyramid import TokenPyramid
from hiergen.tokenizers.base import check_range

#: A clip as a tensor `(c, t, h, w)` or several `(b, c, t, h, w)` in [-1, 1]; or the frames of one clip as PIL pictures, or a list of such.
Frames = Any


class ClipEditing(HiergenPipeline):
    """What a pipeline of clips does with frames."""

    if TYPE_CHECKING:

        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

        def _output(self, decoded: Tensor, pyramid: TokenPyramid, output_type: str, return_dict: bool) -> Any: ...

    @torch.no_grad()
    def extend(
        self,
        frames: Frames,
        class_labels: Labels = None,
        *,
        strength: float | None = None,
        num_videos_per_input: int = 1,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """Continue clips from their first frames; the clips that come back begin with these.

        A clip is never longer than the model's. The last frames of one clip may be the first of the next. At
        every time a flow sees the given frames as noisy as the others are. From noise alone it joins them badly, so it starts from a guess with
        much noise in it: the last frame, standing still.

        Args:
            frames: First frames of one clip or several, of equally many frames: PIL pictures, or tensors of the model's size.
            class_labels: What is to be made: one class for all clips or one for each, by number or name; None for no class.
            strength: Share of the path that a flow makes, 0 to 1: less joins more smoothly, and moves less. None is 0.8; 1 starts
                from noise alone, as generators do that are no flows.
            num_videos_per_input: Number of continuations of each clip, next to each other.
            output_type: As for a call, like `return_dict`.
            options: Further arguments of a call, and settings of the generator.

        Raises:
            ValueError: If frames are of another size, do not fill whole tokens or leave nothing to make, an argument is out of range, or a
                `strength` is given for a generator that is no flow.
            TypeError: If frames or a setting are of another kind.
            FloatingPointError: If a model gives NaN or infinity.
        """
        check_output_type(output_type, self.output_types)
        length, height, width = self._clip_size()
        first = read_frames(frames, height, width)
        call = self._per_input(class_labels, len(first), num_videos_per_input)
        first = first.repeat_interleave(num_videos_per_input, dim=0)
        if "strength" in {field.name for field in dataclasses.fields(self.generator.settings_class)}:
            options["strength"] = 0.8 if strength is None else strength
        elif strength is not None:
            raise ValueError(f"strength is {strength}, but a {type(self.generator).__name__} is no flow: leave it out")
        made = self(**call, known=self._first(first, length), output_type="pt", **options)
        decoded = torch.cat((first.to(made.frames), made.frames[:, :, first.shape[2] :]), dim=2)
        return self._output(decoded, made.pyramid, output_type, return_dict)

    def _clip_size(self) -> tuple[int, int, int]:
        """Return frames, rows and columns of the tokenizer's clips."""
        config = self.tokenizer.config
        if "video_size" in config:
            length, height, width = config["video_size"]
            return length, height, width
        return config["num_frames"], config["frame"]["image_size"], config["frame"]["image_size"]

    def _first(self, first: Float[Tensor, "b c t h w"], length: int) -> Known:
        """Return what is given of clips of which the first frames are known; in the place of the others stands the last one.

        Tokenizers of clips look at no frame beyond those of a token, so that changes no token that is given.
        """
        count, (spec,) = first.shape[2], self.tokenizer.specs
        assert spec.grid is not None
        per_token = length // spec.grid[0]
        if not 0 < count < length or count % per_token:
            raise ValueError(
                f"frames are {count}, expected a multiple of {per_token}, the frames of a token, from {per_token} to {length - per_token}"
            )
        tokenizer = moved(self.tokenizer)
        rest = first[:, :, -1:].expand(-1, -1, length - count, -1, -1)
        pyramid = tokenizer.encode(torch.cat((first, rest), dim=2).to(tokenizer.device, tokenizer.dtype))
        per_frame = spec.num_tokens // spec.grid[0]
        given = torch.arange(spec.num_tokens, device=pyramid.device) < count // per_token * per_frame
        return Known(pyramid, (given.expand(len(first), -1),))


def read_frames(frames: Frames, height: int, width: int) -> Float[Tensor, "b c t h w"]:
    """Return the frames of clips in [-1, 1]; PIL pictures are scaled, and their middle is cut out.

    Raises:
        ValueError: If there is none, clips are not of equally many frames, a tensor has another shape, or pictures are given for clips that
            are not square.
        TypeError: If frames are neither pictures nor a tensor.
    """
    if isinstance(frames, Tensor):
        clips = frames if frames.ndim == 5 else frames[None]
        if clips.ndim != 5 or clips.shape[1] != 3 or tuple(clips.shape[3:]) != (height, width) or not clips.numel():
            wanted = f"(3, t, {height}, {width})"
            raise ValueError(f"frames have shape {tuple(frames.shape)}, expected {wanted}, or a batch of such")
        check_range(clips)
        return clips.float()
    given = [list(clip) for clip in (frames if frames and isinstance(frames[0], Sequence) else [frames])]
    if wrong := [frame for clip in given for frame in clip if not isinstance(frame, Image.Image)]:
        raise TypeError(f"frames hold a {type(wrong[0]).__name__}, expected PIL pictures, or a tensor in [-1, 1]")
    lengths = sorted({len(clip) for clip in given})
    if len(lengths) != 1 or not lengths[0]:
        raise ValueError(f"frames are clips of {lengths} frames, expected equally many of each, at least one")
    if height != width:
        raise ValueError(
            f"frames are pictures, but clips are of {width}x{height} pixels, expected a tensor of that size"
        )
    processor = ImageProcessor(size=height)
    return torch.stack([processor(clip).transpose(0, 1) for clip in given])
