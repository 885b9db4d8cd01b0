"""From a class label to meshes: a generator and the shape tokenizer it was trained for, as a diffusers pipeline."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils import BaseOutput

from hiergen.data.meshes import require_shape_libraries
from hiergen.data.surface_extraction import EmptySurfaceError, ExtractionSettings, extract_mesh
from hiergen.generators.base import Generator
from hiergen.pipelines.base import HiergenPipeline
from hiergen.pyramid import TokenPyramid
from hiergen.seeding import Rng
from hiergen.tokenizers.pyramid_vae import PyramidVAE

if TYPE_CHECKING:
    import trimesh

logger = logging.getLogger(__name__)

#: Called after each generation step with the pipeline, the step's index and {"pyramid": the complete levels, or None}.
ShapeStepCallback = Callable[["ClassToShapePipeline", int, dict[str, Any]], None]


@dataclasses.dataclass
class ShapePipelineOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        meshes: One mesh a shape, in the cube [-1.05, 1.05]^3, y up, faces outward; without faces where the field has no surface.
        pyramid: The tokens they were decoded from.
    """

    meshes: list[trimesh.Trimesh]
    pyramid: TokenPyramid


class ClassToShapePipeline(HiergenPipeline):
    """Class labels -> meshes.

    Example:
        >>> pipe = ClassToShapePipeline.from_pretrained("quickstart-shapes/pipeline")
        >>> pipe(3, generator=torch.Generator().manual_seed(0)).meshes[0].export("chair.glb")
    """

    tokenizer: PyramidVAE
    generator: Generator

    def __init__(self, tokenizer: PyramidVAE, generator: Generator) -> None:
        super().__init__()
        generator.check_tokenizer(tokenizer.specs)
        self.register_modules(tokenizer=tokenizer, generator=generator)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int],
        *,
        num_shapes_per_label: int = 1,
        generator: Rng | None = None,
        callback_on_step_end: ShapeStepCallback | None = None,
        extraction: ExtractionSettings | None = None,
        **settings: Any,
    ) -> ShapePipelineOutput:
        """Generate shapes.

        Args:
            class_labels: One label or several.
            num_shapes_per_label: Shapes for each label, next to each other in the result.
            generator: Source of all random draws, for the batch or for each sample (`SampleRng`); None seeds from the operating system.
            callback_on_step_end: Called after each step with the levels that are complete.
            extraction: Resolution, box and simplification of the meshes; None takes a grid of 129 nodes an axis.
            settings: Fields of the generator's settings, e.g. `guidance_scale`, `num_steps`, `head_sampler`.

        Raises:
            ValueError: If a label is out of range or a number is below 1.
            TypeError: If a setting is unknown to the generator.
            ImportError: If a library for meshes is not installed.
        """
        if num_shapes_per_label < 1:
            raise ValueError(f"num_shapes_per_label is {num_shapes_per_label}, expected at least 1")
        listed = [class_labels] if isinstance(class_labels, int) else list(class_labels)
        if not listed:
            raise ValueError("class_labels is empty, expected at least one label")
        # Before the work of generating, not after it.
        require_shape_libraries()
        labels = torch.tensor(listed, dtype=torch.int64, device=self.generator.device)
        chosen = self.generator.make_settings(**settings)
        callback = self._report(callback_on_step_end)
        pyramid = self.generator.generate(
            labels.repeat_interleave(num_shapes_per_label), chosen, rng=generator, callback=callback
        )
        return ShapePipelineOutput(decode_meshes(self.tokenizer, pyramid, extraction), pyramid)

    def _report(self, callback: ShapeStepCallback | None) -> Callable[[int, TokenPyramid | None], None] | None:
        if callback is None:
            return None
        return lambda step, pyramid: callback(self, step, {"pyramid": pyramid})


@torch.no_grad()
def decode_meshes(
    tokenizer: PyramidVAE, pyramid: TokenPyramid, extraction: ExtractionSettings | None = None
) -> list[trimesh.Trimesh]:
    """Return the meshes of a batch of tokens, from the finest level present.

    A shape whose field has no surface becomes a mesh without faces, and is logged: the others of the batch are still good.

    Raises:
        ValueError: If the tokens are another tokenizer's.
        ImportError: If a library for meshes is not installed.
    """
    import trimesh

    field = tokenizer.decode(pyramid.to(tokenizer.device))
    meshes = []
    for index in range(field.batch_size):
        try:
            meshes.append(extract_mesh(field.shape(index), extraction, device=field.device))
        except EmptySurfaceError as error:
            logger.warning("shape %d of %d has no mesh: %s", index, field.batch_size, error)
            meshes.append(trimesh.Trimesh())
    return meshes
