"""`hiergen generate`: images or clips from class labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiergen.config import parse

if TYPE_CHECKING:
    import torch

    from hiergen.pipelines.video import ClassToVideoPipeline

#: Fields that are handed on to the generator where they are given.
SAMPLING = ("guidance_scale", "guidance_schedule", "temperature", "top_k", "top_p", "num_steps", "num_levels")


@dataclasses.dataclass(frozen=True)
class GenerateSettings:
    """Generate images, or clips where the pipeline makes those.

    Attributes:
        pipeline: Folder or Hub id of a pipeline.
        labels: Class labels.
        count: Images or clips for each label.
        out: Folder for the PNG files and `grid.png`, or the MP4 files and `grid.gif`.
        seed: Of all random draws.
        guidance_scale: 1 is no guidance.
        guidance_schedule: How guidance changes over the steps. This and what follows is the generator's own default where it is
            not given, and an error where the generator knows no such setting.
        temperature: Of the draws.
        top_k: Draw among so many ids; 0 for all.
        top_p: Draw among the ids that make up this probability; 1 for all.
        num_steps: Steps of a masked or flow generator.
        num_levels: Stop after so many levels and decode those; of a generator of levels.
        device: Where to run.
    """

    pipeline: str = "quickstart/pipeline"
    labels: tuple[int, ...] = tuple(range(10))
    count: int = 4
    out: str = "generated"
    seed: int = 0
    guidance_scale: float = 1.5
    guidance_schedule: str | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    num_steps: int | None = None
    num_levels: int | None = None
    device: str = "cpu"


def main(args: list[str]) -> None:
    settings = parse(GenerateSettings(), args, prog="hiergen generate")
    import torch

    from hiergen.data.images import to_pictures
    from hiergen.figures import as_rows, save_image_grid
    from hiergen.files import atomic_path, check_writable
    from hiergen.pipelines.loading import from_pretrained
    from hiergen.pipelines.video import ClassToVideoPipeline

    out = check_writable(settings.out)
    pipeline = from_pretrained(settings.pipeline).to(settings.device)
    rng = torch.Generator(settings.device).manual_seed(settings.seed)
    sampling = {name: value for name in SAMPLING if (value := getattr(settings, name)) is not None}
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

    from hiergen.data.video_files import require_pyav, tile_videos, write_gif, write_mp4

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
