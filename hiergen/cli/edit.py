"""`hiergen edit`: pictures from pictures, by a mask, by their levels, or by moving them on their canvas."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hiergen.checked import Checked, Count
from hiergen.cli import QUICKSTART, check_exists, check_model, describe, open_model
from hiergen.config import parse
from hiergen.telling import counted, say, say_next

if TYPE_CHECKING:
    from torch import Tensor

#: Fields that are handed on to the generator where they are given.
SAMPLING = ("guidance_scale", "guidance_schedule", "temperature", "top_k", "top_p", "num_steps")


@dataclasses.dataclass(frozen=True)
class EditSettings(Checked):
    """Change pictures: what a mask shows, what lies around them, or their fine levels; or blend two.

    Attributes:
        pipeline: Folder or Hub id of a pipeline of images, or the name of a packaged one, e.g. "emoji".
        image: Picture files to edit; their middle is cut out and scaled to the model's size.
        mask: Picture file that is white where pixels are to be made anew, of the size of the pictures.
        labels: Classes to make, by name or number: one for all pictures, or one for each; by default no class.
        prompt: Texts to make, for a pipeline of texts, each in quotes: one for all pictures, or one for each; by default no text.
        negative_prompt: What guidance moves away from, for all prompts; "" is no text.
        strength: How much changes, 0 to 1; by default 1 with a mask, else 0.5. A flow starts with so much noise, others keep so many fewer
            levels.
        keep_levels: Number of levels that are kept; the others are drawn, or come from `fine`.
        fine: Picture file whose fine levels are put together with the coarse levels of each picture.
        shift: Pixels by which pictures move to the right and down on their canvas; what is empty then is made.
        scale: Side of the pictures on their canvas, above 0 to 1; what is empty then is made.
        composes: Whether the known pixels of a picture are put back where a mask is used.
        feather: Width of the soft edge of a mask, half of it, in pixels; 0 is a hard edge.
        count: Number of results for each picture.
        out: Folder for the PNG files, and for the contact sheet, `grid.png`.
        seed: Seed of all random draws.
        guidance_scale: Strength of guidance; 1 is none. By default the generator's own; so are the settings that follow.
        guidance_schedule: How guidance changes over the steps.
        temperature: Temperature of the draws.
        top_k: Number of likeliest ids to draw from; 0 for all.
        top_p: Probability that the likeliest ids to draw from make up; 1 for all.
        num_steps: Number of steps of a masked or flow generator.
        device: Device to run on; "auto" is a GPU where there is one.
        dtype: Number format of the weights; "auto" is that of the saved ones.
    """

    pipeline: str = QUICKSTART
    image: tuple[str, ...] = ()
    mask: str = ""
    labels: tuple[str, ...] = ()
    prompt: tuple[str, ...] = ()
    negative_prompt: str = ""
    strength: float | None = None
    keep_levels: int | None = None
    fine: str = ""
    shift: tuple[int, int] = (0, 0)
    scale: float = 1.0
    composes: bool = True
    feather: int | None = None
    count: Count = 4
    out: str = "edited"
    seed: int = 0
    guidance_scale: float | None = None
    guidance_schedule: str | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    num_steps: int | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    @property
    def is_moved(self) -> bool:
        """Whether pictures are moved on their canvas or made smaller."""
        return self.shift != (0, 0) or self.scale != 1


def main(args: list[str]) -> None:
    settings = parse(EditSettings(), args, prog="hiergen edit")
    _check(settings)
    check_model("--pipeline", settings.pipeline)
    import torch

    from hiergen.data.images.files import read_image
    from hiergen.environment import choose_device
    from hiergen.figures import save_image_grid
    from hiergen.files import atomic_path, check_writable
    from hiergen.pipelines.editing.images import ImageEditing

    out = check_writable(settings.out)
    pipeline = open_model(settings.pipeline, settings.device, dtype=settings.dtype)
    if not isinstance(pipeline, ImageEditing):
        raise ValueError(f"{settings.pipeline!r} holds a {type(pipeline).__name__}, expected a pipeline of images")
    _check_told(settings, pipeline)
    say(f"edit: {counted(len(settings.image), 'picture')} by {describe(pipeline)} -> {out}")
    pictures = [read_image(path) for path in settings.image]
    torch_rng = torch.Generator(choose_device(settings.device)).manual_seed(settings.seed)
    made = _edit(pipeline, pictures, settings, torch_rng).cpu()
    rows = made.unflatten(0, (len(pictures), -1))
    for path, row in zip(_names(settings.image), rows, strict=True):
        for number, picture in enumerate(pipeline.tokenizer.image_processor.postprocess(row)):
            with atomic_path(out / f"{path}-{number:03d}.png") as temporary:
                picture.save(temporary)
    shown = pipeline.tokenizer.image_processor(pictures)
    sheet = [torch.cat((one[None], row)) for one, row in zip(shown, rows, strict=True)]
    columns = ["picture", *(str(number) for number in range(rows.shape[1]))]
    save_image_grid(out / "grid.png", sheet, row_labels=_names(settings.image), column_labels=columns)
    print(f"{counted(len(made), 'image')} and grid.png in {out}")
    say_next(f"hiergen demo {settings.pipeline}")


def _check(settings: EditSettings) -> None:
    """Check the paths, and that the settings belong to one way of editing.

    Raises:
        ValueError: If they do not, or a file does not exist.
    """
    if not settings.image:
        raise ValueError("image is empty, expected the files of the pictures to edit: --image FILE")
    for option in ("image", "mask", "fine"):
        paths = settings.image if option == "image" else (getattr(settings, option),)
        for path in filter(None, paths):
            check_exists(f"--{option}", path, "a picture")
    if settings.fine and settings.keep_levels is None:
        raise ValueError(
            f"fine is {settings.fine!r}, but keep_levels is not given: how many levels of the picture stay?"
        )
    ways = {
        "keep_levels": settings.keep_levels is not None,
        "mask": bool(settings.mask),
        "shift or scale": settings.is_moved,
    }
    if sum(ways.values()) > 1:
        raise ValueError(
            f"{' and '.join(name for name, is_set in ways.items() if is_set)} are given, expected one of them"
        )
    if settings.keep_levels is not None and settings.strength is not None:
        raise ValueError(f"strength is {settings.strength} beside keep_levels, expected one of them")


def _check_told(settings: EditSettings, pipeline: Any) -> None:
    """Check that a pipeline of texts is given texts, and one of classes classes.

    Raises:
        ValueError: If it is not.
    """
    from hiergen.pipelines.image import TextToImagePipeline

    is_of_texts = isinstance(pipeline, TextToImagePipeline)
    given = settings.labels if is_of_texts else (settings.prompt or settings.negative_prompt)
    if given:
        takes = "texts: give --prompt TEXT, not --labels" if is_of_texts else "no texts: give --labels, not --prompt"
        raise ValueError(f"{settings.pipeline!r} is of class {type(pipeline).__name__}, which takes {takes}")


def _edit(pipeline: Any, pictures: list[Any], settings: EditSettings, rng: Any) -> Tensor:
    """Return the results `(n, 3, h, w)` in [-1, 1], those of a picture next to each other."""
    from hiergen.data.images.files import read_image
    from hiergen.pipelines.labels import matches

    if settings.fine:
        fine = [read_image(settings.fine)] * len(pictures)
        blended: Tensor = pipeline.blend(pictures, fine, keep_levels=settings.keep_levels, output_type="pt").images
        return blended
    names = pipeline.class_names
    labels = [int(word) if word.isdecimal() and not matches(names, word) else word for word in settings.labels]
    told = labels or [*settings.prompt] or None
    options = {name: value for name in SAMPLING if (value := getattr(settings, name)) is not None}
    options |= {"generator": rng, "num_images_per_input": settings.count, "output_type": "pt"}
    if settings.negative_prompt:
        options["negative_prompt"] = settings.negative_prompt
    if settings.keep_levels is not None:
        made = pipeline.vary(pictures, told, keep_levels=settings.keep_levels, **options)
        return made.images  # type: ignore[no-any-return]
    options |= {"strength": settings.strength, "composes": settings.composes, "feather": settings.feather}
    if settings.is_moved:
        made = pipeline.outpaint(pictures, told, shift=settings.shift, scale=settings.scale, **options)
    else:
        made = pipeline.edit(pictures, read_image(settings.mask) if settings.mask else None, told, **options)
    return made.images  # type: ignore[no-any-return]


def _names(paths: tuple[str, ...]) -> list[str]:
    """Return the beginning of the names of each picture's results, numbered where there are several: two folders may hold files of one name."""
    stems = [Path(path).stem for path in paths]
    return stems if len(stems) == 1 else [f"{number:03d}-{stem}" for number, stem in enumerate(stems)]
