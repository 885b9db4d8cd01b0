"""`hiergen generate`: images, clips or meshes from class labels, or meshes from images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hiergen.checked import Checked
from hiergen.config import parse

if TYPE_CHECKING:
    import torch

    from hiergen.pipelines.shape import ClassToShapePipeline, ImageToShapePipeline
    from hiergen.pipelines.video import ClassToVideoPipeline

#: Fields that are handed on to the generator where they are given.
SAMPLING = ("guidance_scale", "guidance_schedule", "temperature", "top_k", "top_p", "num_steps", "num_levels")


@dataclasses.dataclass(frozen=True)
class GenerateSettings(Checked):
    """Generate images, clips or meshes, whichever the pipeline makes.

    Attributes:
        pipeline: Folder or Hub id of a pipeline.
        labels: Class labels; by default the first ten that there are.
        image: Picture files to make shapes of, in place of labels; each shows one object, on white or transparent.
        count: Number of images, clips or meshes for each label or picture.
        out: Folder for the PNG files and `grid.png`, the MP4 files and `grid.gif`, or the files of meshes.
        depth: Depth of the grid that meshes are extracted on, of 2**depth cells per axis.
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
    """

    pipeline: str = "quickstart/pipeline"
    labels: tuple[int, ...] = ()
    image: tuple[str, ...] = ()
    count: int = 4
    out: str = "generated"
    depth: int = 7
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


def main(args: list[str]) -> None:
    settings = parse(GenerateSettings(), args, prog="hiergen generate")
    import torch

    from hiergen.data.images.pixels import to_pictures
    from hiergen.environment import choose_device
    from hiergen.figures import as_rows, save_image_grid
    from hiergen.files import atomic_path, check_writable
    from hiergen.pipelines.loading import from_pretrained
    from hiergen.pipelines.shape import ClassToShapePipeline, ImageToShapePipeline
    from hiergen.pipelines.video import ClassToVideoPipeline

    out = check_writable(settings.out)
    device = choose_device(settings.device)
    pipeline = from_pretrained(settings.pipeline)
    if "generator" not in getattr(pipeline, "components", {}):
        raise ValueError(f"{settings.pipeline!r} holds a {type(pipeline).__name__}, expected a pipeline")
    pipeline.to(device)
    if isinstance(pipeline, ImageToShapePipeline) != bool(settings.image):
        takes = "images, give --image FILE" if isinstance(pipeline, ImageToShapePipeline) else "labels, not --image"
        raise ValueError(f"{settings.pipeline!r} is of class {type(pipeline).__name__}, which takes {takes}")
    if not settings.labels and not settings.image:
        count = min(10, pipeline.generator.config["num_classes"] or 0)
        settings = dataclasses.replace(settings, labels=tuple(range(count)))
    rng = torch.Generator(device).manual_seed(settings.seed)
    sampling = {name: value for name in SAMPLING if (value := getattr(settings, name)) is not None}
    if isinstance(pipeline, (ClassToShapePipeline, ImageToShapePipeline)):
        _generate_shapes(pipeline, settings, out, rng, sampling)
        return
    if isinstance(pipeline, ClassToVideoPipeline):
        _generate_videos(pipeline, settings, out, rng, sampling)
        return
    images = pipeline(
        settings.labels, num_images_per_label=settings.count, generator=rng, output_type="pt", **sampling
    ).images
    for index, picture in enumerate(to_pictures(images)):
        label, number = settings.labels[index // settings.count], index % settings.count
        with atomic_path(Path(out) / f"class{label:04d}-{number:03d}.png") as temporary:
            picture.save(temporary)
    save_image_grid(
        out / "grid.png", as_rows(images, settings.count), row_labels=[str(label) for label in settings.labels]
    )
    print(f"{len(images)} images and grid.png in {out}")


def _generate_videos(
    pipeline: ClassToVideoPipeline,
    settings: GenerateSettings,
    out: Path,
    rng: torch.Generator,
    sampling: dict[str, Any],
) -> None:
    import torch

    from hiergen.data.videos.decoding import require_pyav
    from hiergen.data.videos.files import tile_videos, write_gif, write_mp4

    require_pyav()
    videos = pipeline(
        settings.labels, num_videos_per_label=settings.count, generator=rng, output_type="pt", **sampling
    ).frames
    assert isinstance(videos, torch.Tensor)
    for index, video in enumerate(videos):
        label, number = settings.labels[index // settings.count], index % settings.count
        write_mp4(out / f"class{label:04d}-{number:03d}.mp4", video)
    write_gif(out / "grid.gif", tile_videos(videos.split(settings.count)))
    print(f"{len(videos)} clips and grid.gif in {out}")


def _generate_shapes(
    pipeline: ClassToShapePipeline | ImageToShapePipeline,
    settings: GenerateSettings,
    out: Path,
    rng: torch.Generator,
    sampling: dict[str, Any],
) -> None:
    from hiergen.data.images.files import read_image
    from hiergen.geometry.field_grid import ExtractionSettings
    from hiergen.geometry.surface_extraction import save_mesh
    from hiergen.pipelines.shape import ClassToShapePipeline

    extraction = ExtractionSettings(depth=settings.depth, max_faces=settings.max_faces)
    common = {"generator": rng, "extraction": extraction, **sampling}
    if isinstance(pipeline, ClassToShapePipeline):
        names = [f"class{label:04d}" for label in settings.labels]
        meshes = pipeline(settings.labels, num_shapes_per_label=settings.count, **common).meshes
    else:
        # Numbered, since two folders may hold files of one name.
        names = [f"{number:03d}-{Path(path).stem}" for number, path in enumerate(settings.image)]
        pictures = [read_image(path, mode="RGBA") for path in settings.image]
        meshes = pipeline(pictures, num_shapes_per_image=settings.count, **common).meshes
    written = 0
    for index, mesh in enumerate(meshes):
        if not len(mesh.faces):
            continue
        name = f"{names[index // settings.count]}-{index % settings.count:03d}.{settings.mesh_format}"
        save_mesh(mesh, out / name)
        written += 1
    empty = f"; {len(meshes) - written} have no surface and no file" if written < len(meshes) else ""
    print(f"{written} meshes in {out}{empty}")
