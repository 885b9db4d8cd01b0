"""`hiergen generate`: images, clips or meshes from class labels, or meshes from images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hiergen.checked import Checked
from hiergen.cli import QUICKSTART, check_model, describe, open_model, parts_of
from hiergen.config import parse
from hiergen.telling import counted, progress, say, say_next

if TYPE_CHECKING:
    import torch

#: Most rows and columns of a contact sheet.
SHEET = (50, 16)
#: Fields that are handed on to the generator where they are given.
SAMPLING = ("guidance_scale", "guidance_schedule", "temperature", "top_k", "top_p", "num_steps", "num_levels")


@dataclasses.dataclass(frozen=True)
class GenerateSettings(Checked):
    """Generate images, clips or meshes, whichever the pipeline makes.

    Attributes:
        pipeline: Folder or Hub id of a pipeline, or the name of a packaged one, e.g. "digits-1d".
        labels: Classes, by name ("airplanes", in quotes where it has spaces) or by number; by default the first ten that there are. What is
            the name of one class and the number of another is read as the name.
        prompt: Texts to make images of, in place of labels, each in quotes.
        negative_prompt: What guidance moves away from, for all prompts; "" is no text.
        image: Picture files to make shapes of, in place of labels; each shows one object, on white or transparent.
        count: Number of images, clips or meshes for each label, text or picture.
        best_of: Number of candidates for each image, of which the one is kept that gains most by its class or text; a call takes as many times
            as long. The generator compares them, so it must be a flow or have an exact likelihood.
        out: Folder for the files, named by their classes: PNG of images, MP4 and `grid.gif` of clips, or meshes; and for the contact
            sheet, `grid.png`.
        batch_size: Number of samples per pass, candidates counted. The draws of more samples than one pass depend on it.
        npz: File that all images are written to in place of PNG files, as the evaluator of ADM reads them (`arr_0`, uint8, n h w 3).
        depth: Depth of the grid that meshes are extracted on, of 2**depth cells per axis.
        min_piece: Share of a mesh's volume below which a detached piece of it is left out; 0 keeps every piece.
        max_faces: Number of triangles that meshes are simplified to, about; by default they are not simplified.
        mesh_format: Format of the files of meshes, all of which have normals.
        seed: Seed of all random draws.
        guidance_scale: Strength of guidance; 1 is none.
        guidance_schedule: How guidance changes over the steps. By default the generator's own; so are the settings that follow. A
            setting that the generator does not know is an error.
        temperature: Temperature of the draws.
        top_k: Number of likeliest ids to draw from; 0 for all.
        top_p: Probability that the likeliest ids to draw from make up; 1 for all.
        num_steps: Number of steps of a masked or flow generator.
        num_levels: Number of levels after which a generator of levels stops; those are decoded.
        device: Device to run on; "auto" is a GPU where there is one.
        dtype: Number format of the weights; "auto" is bfloat16 where the device computes its products fast, else float32.
        compile: Whether to compile the generator and the decoder first: minutes before the first sample, less time for each.
    """

    pipeline: str = QUICKSTART
    labels: tuple[str, ...] = ()
    prompt: tuple[str, ...] = ()
    negative_prompt: str = ""
    image: tuple[str, ...] = ()
    count: int = 4
    best_of: int = 1
    out: str = "generated"
    batch_size: int = 64
    npz: str = ""
    depth: int = 7
    min_piece: float = 0.0
    max_faces: int | None = None
    mesh_format: Literal["glb", "obj", "ply", "stl"] = "glb"
    seed: int = 0
    guidance_scale: float = 1.5
    guidance_schedule: str | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    num_steps: int | None = None
    num_levels: int | None = None
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    compile: bool = False


def main(args: list[str]) -> None:
    settings = parse(GenerateSettings(), args, prog="hiergen generate")
    for name in ("count", "best_of", "batch_size"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} is {getattr(settings, name)}, expected at least 1")
    check_model("--pipeline", settings.pipeline)
    _check_extras(settings.pipeline)
    import torch

    from hiergen.data.images.files import read_image
    from hiergen.environment import choose_device
    from hiergen.files import check_writable
    from hiergen.pipelines.image import TextToImagePipeline
    from hiergen.pipelines.shape import ImageToShapePipeline, ShapePipeline
    from hiergen.pipelines.video import ClassToVideoPipeline

    pictures = [read_image(path, mode="RGBA") for path in settings.image]
    out = check_writable(settings.out)
    pipeline = open_model(settings.pipeline, settings.device, dtype=settings.dtype, compile=settings.compile)
    if "generator" not in parts_of(pipeline):
        raise ValueError(f"{settings.pipeline!r} holds a {type(pipeline).__name__}, expected a pipeline")
    if isinstance(pipeline, ImageToShapePipeline) != bool(settings.image):
        takes = "images, give --image FILE" if isinstance(pipeline, ImageToShapePipeline) else "labels, not --image"
        raise ValueError(f"{settings.pipeline!r} is of class {type(pipeline).__name__}, which takes {takes}")
    if isinstance(pipeline, TextToImagePipeline) != bool(settings.prompt):
        takes = (
            "texts, give --prompt TEXT" if isinstance(pipeline, TextToImagePipeline) else "no texts: leave --prompt out"
        )
        raise ValueError(f"{settings.pipeline!r} is of class {type(pipeline).__name__}, which takes {takes}")
    write = _write_meshes if isinstance(pipeline, ShapePipeline) else _write_images
    write = _write_clips if isinstance(pipeline, ClassToVideoPipeline) else write
    if settings.npz and write is not _write_images:
        raise ValueError(f"npz is {settings.npz!r}, but {settings.pipeline!r} makes no images")
    wanted = Wanted.of(settings, pictures, pipeline.generator)
    rng = torch.Generator(choose_device(settings.device)).manual_seed(settings.seed)
    sampling = {name: value for name in SAMPLING if (value := getattr(settings, name)) is not None}
    if settings.best_of > 1:
        if write is not _write_images:
            raise ValueError(f"best_of is {settings.best_of}, but {settings.pipeline!r} makes no images: expected 1")
        sampling["best_of"] = settings.best_of
    if settings.negative_prompt:
        sampling["negative_prompt"] = settings.negative_prompt
    say(f"generate: {counted(len(wanted), wanted.unit)} by {describe(pipeline)} -> {out}")
    made = functools.partial(pipeline, generator=rng, **sampling)
    print(write(made, wanted, out))
    kind = type(pipeline).__name__
    follows = f"hiergen demo {settings.pipeline}"
    if kind == "ClassToImagePipeline":
        size = pipeline.tokenizer.config["image_size"]
        follows = f"hiergen evaluate gfid --pipeline {settings.pipeline} --data.source FOLDER --data.size {size} --extractor.name own"
    say_next(follows)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is to be generated: several samples of each condition, in passes of a batch.

    Attributes:
        names: Beginning of the name of the files of each condition.
        titles: What is written beside its row of the contact sheet.
        conditions: A label or picture each.
        settings: Settings of the run.
        unit: Name of a sample.
    """

    names: list[str]
    titles: list[str]
    conditions: list[Any]
    settings: GenerateSettings
    unit: str = "sample"

    @classmethod
    def of(cls, settings: GenerateSettings, pictures: list[Any], generator: Any) -> Wanted:
        """Return what the settings ask for: by pictures, by texts or by labels.

        Raises:
            ValueError: If a name of a class is unknown or ambiguous, or a class is named twice.
        """
        if settings.image:
            return cls.of_pictures(pictures, settings)
        if settings.prompt:
            return cls.of_texts(settings)
        return cls.of_classes(generator, settings)

    @classmethod
    def of_texts(cls, settings: GenerateSettings) -> Wanted:
        from hiergen.pipelines.labels import file_names

        texts = list(settings.prompt)
        found = dict(enumerate(texts))
        # Commas part the synonyms of a class, not a text.
        names = file_names({index: text.replace(",", " ") for index, text in found.items()}, list(found))
        return cls(names, texts, texts, settings)

    @classmethod
    def of_pictures(cls, pictures: list[Any], settings: GenerateSettings) -> Wanted:
        # Numbered, since two folders may hold files of one name.
        names = [f"{number:03d}-{Path(path).stem}" for number, path in enumerate(settings.image)]
        return cls(names, names, pictures, settings)

    @classmethod
    def of_classes(cls, generator: Any, settings: GenerateSettings) -> Wanted:
        """Return what the settings ask for by labels.

        Raises:
            ValueError: If a name is unknown or ambiguous, or a class is named twice.
        """
        from hiergen.pipelines.labels import class_names, file_names, titles

        names = class_names(generator)
        chosen = [_read_class(word, names) for word in settings.labels]
        for place, label in enumerate(chosen):
            if label in chosen[:place]:
                first = settings.labels[chosen.index(label)]
                raise ValueError(
                    f"labels holds {settings.labels[place]!r}, the same class as {first!r}: name it once, with a larger --count"
                )
        labels = chosen or list(range(min(10, generator.config["num_classes"] or 0)))
        return cls(file_names(names, labels), titles(names, labels), labels, settings)

    def __len__(self) -> int:
        return len(self.conditions) * self.settings.count

    def name(self, index: int) -> str:
        """Return the name of the file of a sample, without its suffix."""
        return f"{self.names[index // self.settings.count]}-{index % self.settings.count:03d}"

    def passes(self, make: Callable[[list[Any]], Any]) -> Iterator[tuple[int, Any]]:
        """Yield the index of each sample with the sample."""
        count = self.settings.count
        # Candidates are in the same pass.
        size = max(self.settings.batch_size // self.settings.best_of, 1)
        with progress("generate", len(self), self.unit) as show:
            for start in range(0, len(self), size):
                indices = range(start, min(start + size, len(self)))
                yield from zip(indices, make([self.conditions[index // count] for index in indices]), strict=True)
                show(indices.stop)

    def is_shown(self, index: int) -> bool:
        """Return whether a sample is on the contact sheet, which holds the first of each of the first conditions."""
        return index % self.settings.count < SHEET[1] and index // self.settings.count < SHEET[0]

    def rows(self, shown: Sequence[Any]) -> dict[str, Sequence[Any]]:
        """Return the samples that are shown in rows, by the title of each."""
        columns = min(self.settings.count, SHEET[1])
        return {name: shown[row * columns : (row + 1) * columns] for row, name in enumerate(self.titles[: SHEET[0]])}


def _read_class(word: str, names: Mapping[int, str]) -> int:
    """Return the number of a class that the command line gives by name or number."""
    from hiergen.pipelines.labels import find_class, matches

    if word.isdecimal() and not matches(names, word):
        return int(word)
    label = find_class(names, word, argument="labels")
    if word.isdecimal() and int(word) != label:
        say(f"generate: {word} is read as the name of class {label}")
    return label


def _write_images(make: Callable[..., Any], wanted: Wanted, out: Path) -> str:
    import torch

    from hiergen.data.images.pixels import to_pictures, to_uint8
    from hiergen.evaluation.images.samples import write_adm_npz
    from hiergen.figures import save_image_grid
    from hiergen.files import atomic_path

    shown: list[torch.Tensor] = []

    def images() -> Iterator[torch.Tensor]:
        for index, image in wanted.passes(lambda labels: make(labels, output_type="pt").images):
            if wanted.is_shown(index):
                shown.append(image.cpu())
            if not wanted.settings.npz:
                with atomic_path(out / f"{wanted.name(index)}.png") as temporary:
                    to_pictures(image[None])[0].save(temporary)
            yield to_uint8(image[None]).cpu()

    if wanted.settings.npz:
        write_adm_npz(Path(wanted.settings.npz), len(wanted), images())
    else:
        for _ in images():
            pass
    rows = wanted.rows(shown)
    save_image_grid(out / "grid.png", [torch.stack(list(row)) for row in rows.values()], row_labels=list(rows))
    npz = f" in {wanted.settings.npz}" if wanted.settings.npz else ""
    return f"{counted(len(wanted), 'image')}{npz} and grid.png in {out}"


def _write_clips(make: Callable[..., Any], wanted: Wanted, out: Path) -> str:
    import torch

    from hiergen.data.videos.files import tile_videos, write_gif, write_mp4
    from hiergen.figures import save_image_grid

    shown: list[torch.Tensor] = []
    for index, clip in wanted.passes(lambda labels: make(labels, output_type="pt").frames):
        write_mp4(out / f"{wanted.name(index)}.mp4", clip)
        if wanted.is_shown(index):
            shown.append(clip.cpu())
    rows = wanted.rows(shown)
    write_gif(out / "grid.gif", tile_videos([torch.stack(list(row)) for row in rows.values()]))
    # The first clip of each row, its frames side by side.
    step = max(shown[0].shape[1] // 8, 1)
    frames = [row[0][:, ::step].transpose(0, 1) for row in rows.values()]
    times = [str(step * number) for number in range(len(frames[0]))]
    title = "Frames of the first clips (not selected)"
    save_image_grid(out / "grid.png", frames, row_labels=list(rows), column_labels=times, title=title)
    return f"{counted(len(wanted), 'clip')}, grid.gif and grid.png in {out}"


def _write_meshes(make: Callable[..., Any], wanted: Wanted, out: Path) -> str:
    from hiergen.geometry.field_grid import ExtractionSettings
    from hiergen.geometry.surface_extraction import save_mesh
    from hiergen.quickstart.shapes.scores import draw_contact_sheet

    settings = wanted.settings
    extraction = ExtractionSettings(depth=settings.depth, min_piece=settings.min_piece, max_faces=settings.max_faces)
    shown, written = [], 0
    for index, mesh in wanted.passes(lambda conditions: make(conditions, extraction=extraction).meshes):
        if wanted.is_shown(index):
            shown.append(mesh)
        if len(mesh.faces):
            save_mesh(mesh, out / f"{wanted.name(index)}.{settings.mesh_format}")
            written += 1
    columns = [str(number) for number in range(min(settings.count, SHEET[1]))]
    draw_contact_sheet(out / "grid.png", wanted.rows(shown), column_labels=columns, title="Generated (not selected)")
    empty = f"; {len(wanted) - written} have no surface and no file" if written < len(wanted) else ""
    return f"{counted(written, 'mesh')} and grid.png in {out}{empty}"


def _check_extras(path: str) -> None:
    """Check that the packages are there which write what a pipeline on disk makes, before it is loaded.

    Raises:
        ImportError: Naming the package that is missing and the extra that brings it.
    """
    from hiergen.environment import require
    from hiergen.pipelines.loading import resolve

    index = Path(resolve(path)) / "model_index.json"
    kind = index.read_text() if index.is_file() else ""
    if "ToShapePipeline" in kind:
        for module in ("trimesh", "scipy", "skimage"):
            require(module, "shapes", "a pipeline of shapes")
    elif "ToVideoPipeline" in kind:
        require("av", "video", "a pipeline of clips")
