"""From a class label or an image to meshes: a generator and the shape tokenizer it was trained for, as diffusers pipelines."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from diffusers.utils import BaseOutput
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from hiergen.data.images.pixels import on_white_square, to_tensor
from hiergen.generators.conditioning import Condition, Unconditional
from hiergen.generators.masked.cascade import MaskedCascade
from hiergen.geometry.field_grid import ExtractionSettings
from hiergen.geometry.meshes import require_shape_libraries
from hiergen.geometry.surface_extraction import EmptySurfaceError, extract_mesh
from hiergen.known import Known
from hiergen.pipelines.arguments import Generators, Labels, check_count, check_output_type, read_generators
from hiergen.pipelines.base import HiergenPipeline, StepCallback, moved
from hiergen.pretrained.image_encoder import ImageEncoder
from hiergen.pyramid import TokenPyramid
from hiergen.seeding import Rng
from hiergen.tokenizers.pyramid_vae.model import PyramidVAE

if TYPE_CHECKING:
    import trimesh

logger = logging.getLogger(__name__)

#: One picture, several, or a tensor of them.
Pictures = Any


@dataclasses.dataclass
class ShapePipelineOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        meshes: One mesh per shape, in the cube [-1.05, 1.05]^3, y up, faces outward; without faces where the field has no surface. A pair of
            vertices `(v, 3)` and faces `(f, 3)` per shape for `output_type` "np" (arrays) and "pt" (tensors).
        pyramid: The tokens they were decoded from.
    """

    meshes: list[Any]
    pyramid: TokenPyramid


class ShapePipeline(HiergenPipeline):
    """What the pipelines to shapes share: a condition becomes tokens, tokens become meshes."""

    tokenizer: PyramidVAE
    unit: ClassVar[str] = "shape"
    output_types: ClassVar[tuple[str, ...]] = ("mesh", "np", "pt")

    def _meshes(
        self,
        condition: Condition | Unconditional,
        rng: Rng | None,
        callback: StepCallback | None,
        tensor_inputs: Sequence[str],
        extraction: ExtractionSettings | None,
        output_type: str,
        settings: dict[str, Any],
        known: Known | None = None,
    ) -> ShapePipelineOutput:
        pyramid = self._generate(condition, settings, rng, callback, tensor_inputs, known)
        meshes: list[Any] = list(decode_meshes(moved(self.tokenizer), pyramid, extraction))
        self.maybe_free_model_hooks()
        if output_type != "mesh":
            meshes = [(mesh.vertices.astype(np.float32), mesh.faces.astype(np.int64)) for mesh in meshes]
        if output_type == "pt":
            meshes = [tuple(map(torch.from_numpy, pair)) for pair in meshes]
        return ShapePipelineOutput(meshes, pyramid)


class ClassToShapePipeline(ShapePipeline):
    """Class labels -> meshes.

    Example:
        >>> pipe = ClassToShapePipeline.from_pretrained("quickstart-shapes/pipeline")
        >>> pipe(3, generator=torch.Generator().manual_seed(0)).meshes[0].export("chair.glb")
    """

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Labels = None,
        *,
        num_shapes_per_label: int = 1,
        num_shapes: int | None = None,
        known: Known | None = None,
        generator: Generators = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("pyramid",),
        extraction: ExtractionSettings | None = None,
        output_type: str = "mesh",
        return_dict: bool = True,
        **settings: Any,
    ) -> Any:
        """Generate shapes.

        Args:
            class_labels: One class or several, by number (integers of Python, NumPy or torch) or by name (see `get_label_ids`); None for
                shapes without a class, where the generator was trained with dropout of labels and can do without.
            num_shapes_per_label: Shapes for each label, next to each other in the result.
            num_shapes: Number of shapes without a class.
            known: Tokens that are given and stay, one row per shape; `vary` makes them of points.
            generator: Source of all random draws: one for the batch, or a list of one per shape (or `SampleRng`), so that each shape
                equals a call of its own; None seeds from the operating system.
            callback_on_step_end: Called after each step as `callback(pipe, step, timestep, tensors) -> tensors`.
            callback_on_step_end_tensor_inputs: Names of the tensors that it gets and may replace: "pyramid" and "latents", see
                `HiergenPipeline`.
            extraction: Resolution, box and simplification of the meshes; None takes a grid of 129 nodes along each axis.
            output_type: "mesh" for meshes of trimesh, "np" or "pt" for vertices and faces as arrays or tensors.
            return_dict: Whether to return a `ShapePipelineOutput`, or its parts as a tuple.
            settings: Fields of the generator's settings, e.g. `guidance_scale`, `num_steps`, `head_sampler`.

        Raises:
            ValueError: If an argument or a setting is out of range or of a wrong kind.
            FloatingPointError: If a model gives NaN or infinity.
            TypeError: If a setting is unknown to the generator.
            ImportError: If a library for meshes is not installed.
        """
        condition, rng = self._condition(class_labels, num_shapes_per_label, num_shapes, generator, output_type)
        # Before the work of generating, not after it.
        require_shape_libraries()
        asked = callback_on_step_end_tensor_inputs
        made = self._meshes(condition, rng, callback_on_step_end, asked, extraction, output_type, settings, known)
        return made if return_dict else (made.meshes, made.pyramid)

    def vary(
        self,
        points: Float[Tensor, "b p 6"],
        class_labels: Labels = None,
        *,
        keep_levels: int = 1,
        num_shapes_per_input: int = 1,
        **options: Any,
    ) -> Any:
        """Keep the first levels of shapes and draw the others.

        Args:
            points: Points on the surface of each shape with their normals, in [-1, 1]^3. Fewer than the tokenizer reads are taken several
                times: a part of a surface is completed as far as its coarse tokens tell what it belongs to.
            class_labels: One class for all shapes or one for each, by number or name; None for no class.
            keep_levels: Number of levels that are kept, 0 to all.
            num_shapes_per_input: Number of variations of each shape, next to each other.
            options: Further arguments of a call, and settings of the generator.

        Raises:
            ValueError: If an argument is out of range, or there is no point.
        """
        levels = len(self.tokenizer.specs)
        if not 0 <= keep_levels <= levels:
            raise ValueError(f"keep_levels is {keep_levels}, expected 0 to {levels}")
        if not points.shape[1]:
            raise ValueError(f"points have shape {tuple(points.shape)}, expected at least one point per shape")
        call = self._per_input(class_labels, len(points), num_shapes_per_input)
        tokenizer = moved(self.tokenizer)
        wanted = (tokenizer.config["point_counts"] or [0])[0]
        if points.shape[1] < wanted:
            points = points[:, torch.arange(wanted, device=points.device) % points.shape[1]]
        with torch.no_grad():
            pyramid = tokenizer.encode(points.to(tokenizer.device).repeat_interleave(num_shapes_per_input, dim=0))
        known = Known(pyramid.prefix(keep_levels)) if keep_levels else None
        return self(**call, known=known, **options)


class ImageToShapePipeline(ShapePipeline):
    """Images -> meshes, in the pose that the image shows.

    Example:
        >>> pipe = ImageToShapePipeline.from_pretrained("quickstart-shapes/image_pipeline")
        >>> pipe(Image.open("chair.png"), generator=torch.Generator().manual_seed(0)).meshes[0].export("chair.glb")
    """

    image_encoder: ImageEncoder

    def __init__(self, tokenizer: PyramidVAE, generator: MaskedCascade, image_encoder: ImageEncoder) -> None:
        expected = [list(shape) for shape in generator.config["feature_shapes"] or ()]
        if expected != image_encoder.feature_shapes:
            raise ValueError(
                f"the image encoder gives features {image_encoder.feature_shapes}, the generator was trained for {expected}"
            )
        super().__init__(tokenizer, generator)
        self.register_modules(image_encoder=image_encoder)

    @torch.no_grad()
    def __call__(
        self,
        images: Pictures,
        *,
        num_shapes_per_image: int = 1,
        generator: Generators = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("pyramid",),
        extraction: ExtractionSettings | None = None,
        output_type: str = "mesh",
        return_dict: bool = True,
        **settings: Any,
    ) -> Any:
        """Generate shapes.

        Args:
            images: One picture or several; a transparent one is put on white, one that is not square is padded with white. Or a
                tensor `(b, 3, h, h)` in [-1, 1]. One object, on white: that is what the training views show.
            num_shapes_per_image: Shapes for each image, next to each other in the result.
            generator: As for `ClassToShapePipeline`, like all that follows.

        Raises:
            ValueError: If there is no image, one is not square (tensors), or an argument or a setting is out of range or of a wrong kind.
            FloatingPointError: If a model gives NaN or infinity.
            TypeError: If a setting is unknown to the generator.
            ImportError: If a library for meshes is not installed.
        """
        check_count("num_shapes_per_image", num_shapes_per_image)
        check_output_type(output_type, self.output_types)
        require_shape_libraries()
        if isinstance(images, torch.Tensor):
            pixels = [images]
        else:
            pictures = [images] if isinstance(images, Image.Image) else images
            # Those of transparency or other sides than a square are put on white.
            pixels = [to_tensor(on_white_square(picture))[None] for picture in pictures]
        if not sum(len(part) for part in pixels):
            raise ValueError("images is empty, expected at least one image")
        # Pictures of different sizes are encoded one by one.
        parts = [self.image_encoder(part.to(self.image_encoder.device)) for part in pixels]
        features = [torch.cat(network).to(moved(self.generator).device) for network in zip(*parts, strict=True)]
        condition = [feature.repeat_interleave(num_shapes_per_image, dim=0) for feature in features]
        rng = read_generators(generator, len(condition[0]), self.unit)
        asked = callback_on_step_end_tensor_inputs
        made = self._meshes(condition, rng, callback_on_step_end, asked, extraction, output_type, settings)
        return made if return_dict else (made.meshes, made.pyramid)


@torch.no_grad()
def decode_meshes(
    tokenizer: PyramidVAE, pyramid: TokenPyramid, extraction: ExtractionSettings | None = None
) -> list[trimesh.Trimesh]:
    """Return the meshes of a batch of tokens, from the finest level present.

    A shape whose field has no surface becomes a mesh without faces, and is logged: the others of the batch are still good.

    Raises:
        ValueError: If the tokens are another tokenizer's.
        FloatingPointError: If the field holds NaN or infinity.
        ImportError: If a library for meshes is not installed.
    """
    import trimesh

    field = tokenizer.decode(pyramid.to(tokenizer.device))
    meshes = []
    for index in range(field.batch_size):
        try:
            shape = _finite(
                field.shape(index), f"shape {index} of {field.batch_size}, decoded by {type(tokenizer).__name__}"
            )
            meshes.append(extract_mesh(shape, extraction, device=field.device))
        except EmptySurfaceError as error:
            logger.warning("shape %d of %d has no mesh: %s", index, field.batch_size, error)
            meshes.append(trimesh.Trimesh())
    return meshes


def _finite(field: Callable[[Tensor], Tensor], what: str) -> Callable[[Tensor], Tensor]:
    """Return a field whose values are checked."""

    def checked(points: Tensor) -> Tensor:
        values = field(points)
        if not bool(values.isfinite().all()):
            raise FloatingPointError(f"the field of {what}, holds NaN or infinity")
        return values

    return checked
