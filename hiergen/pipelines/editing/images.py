"""From pictures to others: what a mask shows is made anew, fine levels are drawn again, levels of two pictures are put together.

A picture is encoded, part of its tokens is given to the generator as `Known`, and what comes out is decoded.

Letters: `b` batch, `c h w` image.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hiergen.known import Known
from hiergen.pipelines.arguments import Labels, check_output_type
from hiergen.pipelines.base import HiergenPipeline, moved
from hiergen.pipelines.editing.masks import fill_holes, place, read_masks, soften
from hiergen.pyramid import TokenPyramid
from hiergen.telling import counted

#: One picture or several, as `hiergen.ImageProcessor` reads them.
Pictures = Any


class ImageEditing(HiergenPipeline):
    """What a pipeline of images does with pictures."""

    if TYPE_CHECKING:

        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

        def _output(self, decoded: Tensor, pyramid: TokenPyramid, output_type: str, return_dict: bool) -> Any: ...

    @torch.no_grad()
    def edit(
        self,
        image: Pictures,
        mask_image: Any = None,
        class_labels: Labels = None,
        *,
        strength: float | None = None,
        num_images_per_input: int = 1,
        composes: bool = True,
        feather: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """Make part of each picture anew, or the whole of it somewhat different.

        With a mask only what it shows changes. A token whose cell touches the mask is made, at every level; the others are given. Where `strength` is 1 and
        the generator takes places, what lies under the mask is not looked at: it is filled smoothly before the picture is encoded. Tokens
        without places (1-D levels) cannot be given in part: then whole levels are kept, and the mask acts on pixels alone.

        Args:
            image: One picture or several, as `hiergen.ImageProcessor` reads them.
            mask_image: White where pixels are to be made; one for all pictures or one for each, see `read_masks`. None is all of the picture.
            class_labels: What is to be made: one class for all pictures or one for each, by number or name; None for no class.
            strength: How much changes, 0 to 1. A flow starts at time 1 - strength, from the picture with as much noise in it; of other
                generators the first (1 - strength) * levels levels are kept, rounded. None is 1 with a mask over tokens that have places, and
                else 0.5.
            num_images_per_input: Number of results for each picture, next to each other.
            composes: Whether the known pixels are put back, so that only what the mask shows has gone through the tokenizer.
            feather: Known pixels up to twice as many pixels from the mask are mixed with made ones, less and less; 0 is a hard edge, None is
                1 for every 32 pixels of the picture's side.
            output_type: As for a call, like `return_dict`.
            options: Further arguments of a call, and settings of the generator.

        Raises:
            ValueError: If an argument is out of range or of a wrong kind, or the generator can keep nothing of this picture.
            TypeError: If a picture, a mask or a setting is of another kind.
            FloatingPointError: If a model gives NaN or infinity.
        """
        check_output_type(output_type, self.output_types)
        if feather is not None and feather < 0:
            raise ValueError(f"feather is {feather}, expected at least 0")
        images = self.tokenizer.image_processor(image)
        call = self._per_input(class_labels, len(images), num_images_per_input)
        masks = None
        if mask_image is not None:
            masks = read_masks(mask_image, images.shape[-1], len(images)).to(images.device)
            masks = masks.repeat_interleave(num_images_per_input, dim=0)
        images = images.repeat_interleave(num_images_per_input, dim=0)
        is_local = self.has_places and masks is not None
        strength = (1.0 if is_local else 0.5) if strength is None else strength
        if not 0 <= strength <= 1:
            raise ValueError(f"strength is {strength}, expected 0 to 1")
        shown = fill_holes(images, masks) if masks is not None and is_local and strength == 1 else images
        known = self._known(self._to_tokens(shown), masks, strength)
        started = {"strength": strength} if self.starts_from_images and strength < 1 else {}
        made = self(**call, known=known, output_type="pt", **started, **options)
        decoded = made.images
        if masks is not None and composes:
            soft = soften(masks, images.shape[-1] // 32 if feather is None else feather).to(decoded)
            decoded = soft * decoded + (1 - soft) * images.to(decoded)
        return self._output(decoded, made.pyramid, output_type, return_dict)

    def outpaint(
        self,
        image: Pictures,
        class_labels: Labels = None,
        *,
        shift: tuple[int, int] = (0, 0),
        scale: float = 1.0,
        **options: Any,
    ) -> Any:
        """Make pictures smaller or move them on their canvas, and make what is empty then; the size of the result is the model's.

        Args:
            image: One picture or several.
            class_labels: As for `edit`.
            shift: Pixels by which pictures move to the right and down; negative numbers move to the left and up.
            scale: Side of the pictures on their canvas, above 0 to 1.
            options: Arguments of `edit`.

        Raises:
            ValueError: If nothing of the pictures is left or nothing is empty, and as `edit`.
        """
        images, masks = place(self.tokenizer.image_processor(image), shift=shift, scale=scale)
        return self.edit(images, masks, class_labels, **options)

    def vary(
        self,
        image: Pictures,
        class_labels: Labels = None,
        *,
        keep_levels: int,
        num_images_per_input: int = 1,
        **options: Any,
    ) -> Any:
        """Keep the first levels of each picture and draw the others.

        Args:
            image: One picture or several.
            class_labels: As for `edit`.
            keep_levels: Number of levels that are kept: 0 makes new pictures, all of them decode the old ones.
            num_images_per_input: Number of variations of each picture, next to each other.
            options: Further arguments of a call, and settings of the generator.

        Raises:
            ValueError: If `keep_levels` is out of range, or the generator makes all in one level.
        """
        self._check_kept(keep_levels)
        images = self.tokenizer.image_processor(image)
        call = self._per_input(class_labels, len(images), num_images_per_input)
        pyramid = self._to_tokens(images.repeat_interleave(num_images_per_input, dim=0))
        known = Known(pyramid.prefix(keep_levels)) if keep_levels else None
        return self(**call, known=known, **options)

    @torch.no_grad()
    def blend(
        self,
        coarse_image: Pictures,
        fine_image: Pictures,
        *,
        keep_levels: int,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Put the first levels of one picture and the others of another together; nothing is drawn.

        Args:
            coarse_image: One picture or several, whose first `keep_levels` levels are taken.
            fine_image: As many pictures, whose other levels are taken.
            keep_levels: Number of levels of the coarse picture, 0 to all.
            output_type: As for a call, like `return_dict`.

        Raises:
            ValueError: If `keep_levels` is out of range, the tokenizer has one level, or there are not as many pictures of both kinds.
        """
        check_output_type(output_type, self.output_types)
        self._check_kept(keep_levels)
        coarse, fine = (self._to_tokens(self.tokenizer.image_processor(given)) for given in (coarse_image, fine_image))
        if coarse.batch_size != fine.batch_size:
            raise ValueError(
                f"coarse_image holds {counted(coarse.batch_size, 'picture')} and fine_image {fine.batch_size}, expected as many"
            )
        pyramid = TokenPyramid((*coarse.levels[:keep_levels], *fine.levels[keep_levels:]), coarse.specs)
        decoded = self._decode(pyramid)
        self.maybe_free_model_hooks()
        return self._output(decoded, pyramid, output_type, return_dict)

    @property
    def can_edit(self) -> bool:
        """Whether the generator can keep some of a picture: places, levels, or a start from the picture with noise in it."""
        has_levels = "levels" in self.generator.takes_known and len(self.tokenizer.specs) > 1
        return self.has_places or has_levels or self.starts_from_images

    @property
    def has_places(self) -> bool:
        """Whether tokens can be given in part, by the places of the pixels that they stand for."""
        return "places" in self.generator.takes_known and all(spec.grid for spec in self.tokenizer.specs)

    @property
    def starts_from_images(self) -> bool:
        """Whether the generator can start from a picture with noise in it."""
        return "strength" in {field.name for field in dataclasses.fields(self.generator.settings_class)}

    def _to_tokens(self, images: Float[Tensor, "b c h w"]) -> TokenPyramid:
        tokenizer = moved(self.tokenizer)
        with torch.no_grad():
            pyramid: TokenPyramid = tokenizer.encode(images.to(tokenizer.device, tokenizer.dtype))
        return pyramid

    def _known(self, pyramid: TokenPyramid, masks: Bool[Tensor, "b h w"] | None, strength: float) -> Known | None:
        """Return what is given of pictures; None for nothing."""
        levels = len(pyramid)
        kept = 0 if self.starts_from_images else round((1 - strength) * levels)
        if masks is not None and self.has_places:
            if levels == 1 and not self.starts_from_images and strength < 1:
                name = type(self.generator).__name__
                raise ValueError(
                    f"strength is {strength}, but this {name} makes 1 level, of which it can keep none: expected 1"
                )
            # Not by the majority of a cell, as VAR's official editing: coarse tokens would say that the hole is as smooth as it was filled.
            given = Known.outside(pyramid, masks.to(pyramid.device)).masks
            return Known(pyramid, (*[None] * kept, *given[kept:]))
        if self.starts_from_images:
            shape = (pyramid.batch_size, -1)
            nothing = [torch.zeros(1, spec.num_tokens, dtype=torch.bool).expand(*shape) for spec in pyramid.specs]
            return Known(pyramid, tuple(mask.to(pyramid.device) for mask in nothing))
        self._check_kept(kept)
        return Known(pyramid.prefix(kept)) if kept else None

    def _check_kept(self, keep_levels: int) -> None:
        """Check that a number of levels can be kept.

        Raises:
            ValueError: If there is one level alone, the generator takes none, or the number is out of range.
        """
        levels, name = len(self.tokenizer.specs), type(self.generator).__name__
        if levels == 1 or "levels" not in self.generator.takes_known:
            way = "give edit() a mask_image" if self.has_places else "it cannot keep part of a picture"
            way += " or a strength" if self.starts_from_images else ""
            raise ValueError(f"this {name} makes {counted(levels, 'level')}, of which it can keep none: {way}")
        if isinstance(keep_levels, bool) or not isinstance(keep_levels, int) or not 0 <= keep_levels <= levels:
            raise ValueError(f"keep_levels is {keep_levels!r}, expected 0 to {levels}")
