"""The shape quickstart: procedural shapes -> pyramid VAE -> tokens -> cascades by class and by image -> meshes -> report.

Every stage leaves its result in the output folder and is passed over when it is there, so a stopped run continues.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from rich.console import Console

from hiergen.config import to_json
from hiergen.data.codes import CodeSet
from hiergen.data.shapes.building import PROCEDURAL, PrepareShapesSettings
from hiergen.data.shapes.config import ShapeBatchConfig, ShapeDataConfig
from hiergen.data.shapes.dataset import TEST_OFFSET, open_shapes
from hiergen.data.shapes.preparation import prepare_shapes
from hiergen.data.shapes.procedural import PROCEDURAL_CLASSES, procedural_shape
from hiergen.data.shapes.records import ShapeFolder, encode_png
from hiergen.data.shapes.views import ViewSettings
from hiergen.figures import log_curves, save_curves
from hiergen.files import atomic_path, check_writable
from hiergen.generators.masked.cascade import MaskedCascade
from hiergen.geometry.field_grid import ExtractionSettings
from hiergen.geometry.surface_extraction import save_mesh
from hiergen.geometry.surface_sampling import SamplingSettings
from hiergen.pipelines.card import save_whole
from hiergen.pipelines.shape import ClassToShapePipeline, ImageToShapePipeline, decode_meshes
from hiergen.pipelines.shape_encoding import encode_clouds, encode_shapes
from hiergen.pretrained.image_encoder import ImageEncoder
from hiergen.quickstart.report import publish, versions
from hiergen.quickstart.settings import NUM_SHAPE_CLASSES, ShapesQuickstartSettings
from hiergen.quickstart.shapes.report import shape_markdown
from hiergen.quickstart.shapes.scores import (
    draw_contact_sheet,
    generation_scores,
    reconstruction_scores,
    rendered_scores,
)
from hiergen.quickstart.shapes.views import held_out_views, view_encoder, view_extractor
from hiergen.quickstart.stages import StageTimes
from hiergen.registry import get_preset
from hiergen.seeding import make_rng
from hiergen.telling import counted
from hiergen.tokenizers.pyramid_vae.model import PyramidVAE
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import fit
from hiergen.training.tasks.settings import ShapeGeneratorTaskConfig, ShapeTokenizerTaskConfig

if TYPE_CHECKING:
    import trimesh

#: What the samples are drawn with.
SAMPLING: dict[str, Any] = {
    "num_steps": 16,
    "guidance_scale": 2.0,
    "guidance_schedule": "constant",
    "head_sampler": "ddpm",
    "head_steps": 50,
}

#: Points of a prepared shape. Near queries are farther from the surface than the default: a small model cannot tell closer ones apart.
POINTS = SamplingSettings(num_surface=4096, num_volume=8192, num_near=4096, near_sigmas=(0.02, 0.05), num_farthest=0)
#: Points of a prepared shape, and queries of a sample, for tokens with places, which learn faster and get further.
CLOSER_POINTS = SamplingSettings(
    num_surface=4096, num_volume=16_384, num_near=8192, near_sigmas=(0.015, 0.04), num_farthest=0
)
NUM_QUERIES, NUM_CLOSER_QUERIES = 384, 768


def run_shapes_quickstart(settings: ShapesQuickstartSettings) -> dict[str, Any]:
    """Prepare, train, generate, score and draw; return the report, which is also written to `report.json` and `report.md`.

    Raises:
        ValueError: If the output folder cannot be written to, or holds a run of other settings.
        ImportError: If a library for shapes is not installed.
        RunInterruptedError: When stopped by a signal, after saving.
    """
    out = check_writable(settings.out)
    console = Console(stderr=True)
    times = StageTimes(out / "times.json")
    console.print(
        f"[bold]hiergen quickstart shapes[/] -> {out}: {settings.num_shapes} shapes of {NUM_SHAPE_CLASSES} classes"
    )
    with times.stage("prepare shapes"):
        _prepare(settings)
    with times.stage("train tokenizer"):
        tokenizer_run = fit(_tokenizer_config(settings), title="tokenizer")
    tokenizer = PyramidVAE.from_pretrained(tokenizer_run.model_dir).eval()
    with times.stage("encode"):
        shapes = open_shapes(_data(settings, "train"))
        encode_shapes(tokenizer, shapes, out / "codes", num_variants=settings.num_variants, seed=settings.seed)
    with times.stage("train generator"):
        generator_run = fit(_generator_config(settings, "class"), title="generator")
    generator = MaskedCascade.from_pretrained(generator_run.model_dir).eval()
    pipeline = ClassToShapePipeline(tokenizer=tokenizer, generator=generator)
    image_pipeline = _image_pipeline(settings, tokenizer, times)
    with times.stage("reconstruct"):
        rebuilt = _rebuild(tokenizer, settings)
    with times.stage("generate"):
        generated = _generate(pipeline, settings)
        shown = _generate_from_views(image_pipeline, settings)
    with times.stage("score"):
        report = _report(settings, tokenizer, rebuilt, generated)
        report |= _image_report(settings, image_pipeline.image_encoder, generated, shown)
    with times.stage("draw"):
        _draw(settings, tokenizer, rebuilt, generated, shown)
        overlap = log_curves(tokenizer_run.log, ["iou_logits_0", "iou_logits_1"])
        noise = log_curves(generator_run.log, ["low_mse", "high_mse"])
        save_curves(out / "curves.png", {"tokenizer: IoU in the volume": overlap, "generator: noise error": noise})
    for name, made in (("pipeline", pipeline), ("image_pipeline", image_pipeline)):
        save_whole(made, out / name)
    by_image = {"generator by image": image_pipeline.generator, "image encoder": image_pipeline.image_encoder}
    level, made = report["reconstruction"]["levels"][-1], report["generation"]
    report["summary"] = (
        f"IoU {level['iou']:.2f} of {report['reconstruction']['shapes']} from {level['tokens']} tokens; "
        f"the {made['judge']} agrees with {made['class_agreement']:.1%} of the generated shapes"
    )
    return publish(out, report, shape_markdown, pipeline=pipeline, more=by_image, times=times, console=console)


def measure_pipeline(pipeline: ClassToShapePipeline, settings: ShapesQuickstartSettings) -> dict[str, Any]:
    """Return what the report says of a trained pipeline, measured again, in `settings.out`: "reconstruction" and "generation"."""
    _prepare(settings, parts=("test",))
    rebuilt = _rebuild(pipeline.tokenizer, settings)
    report = _report(settings, pipeline.tokenizer, rebuilt, _generate(pipeline, settings))
    return {name: report[name] for name in ("reconstruction", "generation")}


def _prepare(settings: ShapesQuickstartSettings, parts: Sequence[str] = ("train", "test")) -> None:
    counts = {"train": (settings.num_shapes, 0), "test": (settings.num_test, TEST_OFFSET)}
    for part in parts:
        count, offset = counts[part]
        prepare_shapes(
            PrepareShapesSettings(
                source=PROCEDURAL,
                out=str(Path(settings.out) / "shapes" / part),
                count=count,
                offset=offset,
                seed=settings.seed,
                sampling=CLOSER_POINTS if _has_places(settings) else POINTS,
                views=ViewSettings(num_views=settings.num_views, size=settings.view_size),
                num_workers=settings.num_workers,
            )
        )


def _data(settings: ShapesQuickstartSettings, part: str, *, image: bool = False) -> ShapeDataConfig:
    counts = get_preset(settings.tokenizer).config["point_counts"]
    batch = ShapeBatchConfig(
        num_points=counts[0],
        num_ordered=max(counts[1:], default=0),
        num_queries=NUM_CLOSER_QUERIES if _has_places(settings) else NUM_QUERIES,
        near_fraction=0.5,
        image=image,
    )
    return ShapeDataConfig(source=str(Path(settings.out) / "shapes" / part), split="all", batch=batch)


def _has_places(settings: ShapesQuickstartSettings) -> bool:
    return get_preset(settings.tokenizer).config.get("anchor_reach") is not None


def _tokenizer_config(settings: ShapesQuickstartSettings) -> TrainConfig:
    return TrainConfig(
        task=ShapeTokenizerTaskConfig(
            preset=settings.tokenizer,
            data=_data(settings, "train"),
            near_weight=0.5,
            levels="in_turn",
            # The finer level of tokens with places has more to learn.
            level_shares=(1, 3) if _has_places(settings) else None,
        ),
        out=str(Path(settings.out) / "tokenizer"),
        samples=settings.tokenizer_samples,
        batch_size=8,
        seed=settings.seed,
        optim=OptimConfig(lr=2e-3, betas=(0.9, 0.98), warmup_samples=800, final_lr_ratio=0.02),
        num_workers=1,
        ema_decay=0.99,
        log_every=800,
        checkpoint_every=4_000,
    )


def _generator_config(settings: ShapesQuickstartSettings, condition: Literal["class", "image"]) -> TrainConfig:
    by_class, root = condition == "class", Path(settings.out)
    codes = str(root / ("codes" if by_class else "image_codes"))
    return TrainConfig(
        task=ShapeGeneratorTaskConfig(preset=settings.generator, codes=codes, condition=condition),
        out=str(root / ("generator" if by_class else "image_generator")),
        samples=settings.generator_samples if by_class else settings.image_samples,
        # What a view shows is harder to learn than a class: many small steps.
        batch_size=32 if by_class else 8,
        seed=settings.seed,
        optim=OptimConfig(lr=1e-3, weight_decay=0.02, warmup_samples=1_000, final_lr_ratio=0.05),
        ema_decay=0.99,
        log_every=800,
        checkpoint_every=4_000,
    )


def _image_pipeline(
    settings: ShapesQuickstartSettings, tokenizer: PyramidVAE, times: StageTimes
) -> ImageToShapePipeline:
    """Train what generates from rendered views: their encoder, then a cascade on its features."""
    out = Path(settings.out)
    shapes = open_shapes(_data(settings, "train", image=True))
    with times.stage("train image encoder"):
        codes = CodeSet.open(out / "codes")
        encoder = view_encoder(
            out / "image_encoder", shapes, codes, size=settings.view_size, epochs=12, seed=settings.seed
        )
    with times.stage("encode views"):
        encode_shapes(
            tokenizer,
            shapes,
            out / "image_codes",
            num_variants=settings.num_views,
            seed=settings.seed,
            image_encoder=encoder,
            feature_cache=out / "features",
        )
    with times.stage("train generator by image"):
        run = fit(_generator_config(settings, "image"), title="generator by image")
    generator = MaskedCascade.from_pretrained(run.model_dir).eval()
    pipeline = ImageToShapePipeline(tokenizer=tokenizer, generator=generator, image_encoder=encoder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _generate_from_views(pipeline: ImageToShapePipeline, settings: ShapesQuickstartSettings) -> list[trimesh.Trimesh]:
    """Return one generated mesh for a view of each held-out shape, and write view and mesh."""
    data = _data(settings, "test", image=True)
    views = held_out_views(open_shapes(data), _by_number(data.source))
    folder = Path(settings.out) / "from_views"
    for number, picture in enumerate(views):
        path = folder / f"{PROCEDURAL_CLASSES[number % NUM_SHAPE_CLASSES]}-{number:03d}-view.png"
        with atomic_path(path) as temporary:
            temporary.write_bytes(encode_png(picture.permute(1, 2, 0).numpy()))
    rng, extraction = make_rng(settings.seed, "sample from views"), _extraction(settings)
    meshes = pipeline(views.float() / 127.5 - 1, generator=rng, extraction=extraction, **SAMPLING).meshes
    _save(meshes, folder, "from-view")
    return meshes


def _by_number(source: str) -> list[int]:
    """Return the places of a folder's shapes by their number: it is in the order of its keys, class after class."""
    numbers = [int(key.rsplit("-", 1)[1]) for key in ShapeFolder(source).keys]
    return sorted(range(len(numbers)), key=numbers.__getitem__)


def _extraction(settings: ShapesQuickstartSettings) -> ExtractionSettings:
    # The fields of small models are smooth: a coarser first grid finds the same surface in half the time.
    return ExtractionSettings(depth=settings.depth, coarse_depth=4)


def _rebuild(tokenizer: PyramidVAE, settings: ShapesQuickstartSettings) -> list[list[trimesh.Trimesh]]:
    """Return the meshes of the held-out shapes from each level, and write them."""
    data = _data(settings, "test")
    pyramid = encode_clouds(tokenizer, open_shapes(data), _by_number(data.source))
    prefixes = (pyramid.prefix(k) for k in range(1, len(pyramid) + 1))
    levels = [decode_meshes(tokenizer, prefix, _extraction(settings)) for prefix in prefixes]
    for spec, meshes in zip(pyramid.specs, levels, strict=True):
        _save(meshes, Path(settings.out) / "reconstructions", f"{spec.num_tokens}-tokens")
    return levels


def _generate(pipeline: ClassToShapePipeline, settings: ShapesQuickstartSettings) -> list[trimesh.Trimesh]:
    """Return generated meshes, class by class in turn as the held-out shapes are, and write them."""
    pipeline.set_progress_bar_config(disable=True)
    labels = [number % NUM_SHAPE_CLASSES for number in range(settings.num_generated)]
    rng, extraction = make_rng(settings.seed, "sample"), _extraction(settings)
    meshes = pipeline(labels, generator=rng, extraction=extraction, **SAMPLING).meshes
    _save(meshes, Path(settings.out) / "samples", "sample")
    return meshes


def _save(meshes: list[trimesh.Trimesh], folder: Path, suffix: str) -> None:
    for number, mesh in enumerate(meshes):
        if len(mesh.faces):
            save_mesh(mesh, folder / f"{PROCEDURAL_CLASSES[number % NUM_SHAPE_CLASSES]}-{number:03d}-{suffix}.glb")


def _report(
    settings: ShapesQuickstartSettings,
    tokenizer: PyramidVAE,
    rebuilt: list[list[trimesh.Trimesh]],
    generated: list[trimesh.Trimesh],
) -> dict[str, Any]:
    test = _references(settings, TEST_OFFSET, settings.num_test)
    train = _references(settings, 0, min(settings.num_shapes, 8 * NUM_SHAPE_CLASSES))
    return {
        "what": f"quickstart on procedural shapes of {NUM_SHAPE_CLASSES} classes, trained from random weights",
        "settings": to_json(settings),
        "sampling": SAMPLING,
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "classes": list(PROCEDURAL_CLASSES),
        "reconstruction": {
            "shapes": f"{settings.num_test} held-out shapes",
            "levels": [
                {"tokens": spec.num_tokens, **reconstruction_scores(meshes, test, seed=settings.seed)}
                for spec, meshes in zip(tokenizer.specs, rebuilt, strict=True)
            ],
        },
        "generation": generation_scores(generated, test, train, seed=settings.seed),
    }


def _image_report(
    settings: ShapesQuickstartSettings,
    encoder: ImageEncoder,
    generated: list[trimesh.Trimesh],
    shown: list[trimesh.Trimesh],
) -> dict[str, Any]:
    """Return how shapes generated from views relate to the shapes that the views show, and distances of rendered views."""
    test = _references(settings, TEST_OFFSET, settings.num_test)
    train = _references(settings, 0, min(settings.num_shapes, settings.num_generated))
    extractor = view_extractor(encoder)
    return {
        "from_views": reconstruction_scores(shown, test, seed=settings.seed),
        "rendered": rendered_scores(
            {"generated by class": generated, "generated from views": shown, "real training shapes": train},
            test,
            extractor,
        ),
        "rendered_on": f"{extractor.name}: {extractor.description}",
    }


def _draw(
    settings: ShapesQuickstartSettings,
    tokenizer: PyramidVAE,
    rebuilt: list[list[trimesh.Trimesh]],
    generated: list[trimesh.Trimesh],
    shown: list[trimesh.Trimesh],
) -> None:
    rows = {"input": _references(settings, TEST_OFFSET, NUM_SHAPE_CLASSES)}
    for spec, meshes in zip(tokenizer.specs, rebuilt, strict=True):
        rows[counted(spec.num_tokens, "token")] = meshes[:NUM_SHAPE_CLASSES]
    rows["from a view"] = shown[:NUM_SHAPE_CLASSES]
    for number in range(min(3, settings.num_generated // NUM_SHAPE_CLASSES)):
        rows[f"sample {number + 1}"] = generated[number * NUM_SHAPE_CLASSES : (number + 1) * NUM_SHAPE_CLASSES]
    draw_contact_sheet(
        Path(settings.out) / "contact_sheet.png",
        rows,
        column_labels=PROCEDURAL_CLASSES,
        title="Held-out shapes, rebuilt from each level, generated from one view; below, generated by class (not selected)",
    )


def _references(settings: ShapesQuickstartSettings, offset: int, count: int) -> list[trimesh.Trimesh]:
    return [procedural_shape(offset + number, seed=settings.seed).to_mesh() for number in range(count)]
