"""Make a quickstart's result a model that comes with the package: half precision, a card, and what the demo says about it.

    python demos/ship_models.py quickstart --threads 1
    python demos/ship_models.py quickstart-shapes
    python demos/ship_models.py quickstart-shapes --pipeline image_pipeline
    python demos/ship_models.py quickstart-video --num-steps 10
    python demos/ship_models.py quickstart-video --guidance 1.5

The numbers of the card are measured here, on the files that are shipped; the command is put together from the run's report.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hiergen.config import from_json, to_json
from hiergen.data.images.digits import load_digits
from hiergen.data.images.pixels import to_uint8
from hiergen.data.shapes.dataset import TEST_OFFSET
from hiergen.data.shapes.procedural import PROCEDURAL_CLASSES, procedural_shape
from hiergen.data.shapes.views import ViewSettings, render_views
from hiergen.data.videos.dataset import from_uint8
from hiergen.data.videos.moving_emoji import EMOJI
from hiergen.demo.library import NOTES_FILE, load_model
from hiergen.demo.pictures import open_view
from hiergen.files import atomic_directory, write_json, write_text
from hiergen.geometry.field_grid import ExtractionSettings
from hiergen.metrics.classifiers import LabelClassifier
from hiergen.metrics.pixel import psnr
from hiergen.metrics.video import compare_videos
from hiergen.pipelines.loading import from_pretrained
from hiergen.pipelines.prefixes import rebuild_prefixes
from hiergen.pretrained.packaged import PACKAGED
from hiergen.quickstart.settings import MOVING, QuickstartSettings, ShapesQuickstartSettings, VideoQuickstartSettings
from hiergen.quickstart.shapes.run import measure_pipeline
from hiergen.quickstart.shapes.scores import SPECK, reconstruction_scores
from hiergen.quickstart.videos.clips import quickstart_clips
from hiergen.quickstart.videos.scores import clip_judge
from hiergen.seeding import make_rng

DIGITS = "scikit-learn's handwritten digits ({images}; UCI Optical Recognition of Handwritten Digits, Alpaydin and Kaynak, CC BY 4.0)"
ENLARGED = DIGITS.format(images="1,442 training images of 8x8 enlarged to 32x32")
MOVING_DIGITS = (
    "{count:,} clips of one moving digit each, made by `hiergen.data.videos.moving_digits` from the training images of "
    + DIGITS.format(images="8x8, enlarged")
)
MOVING_EMOJI = (
    "{count:,} clips of one moving emoji each, made by `hiergen.data.videos.moving_emoji` from 42 drawings of Google's Noto Emoji "
    "(Apache License 2.0) and Microsoft's Fluent Emoji (MIT License), the notices of which are in `hiergen/data/embedded/LICENSES.txt`"
)
SHAPES = "{count:,} procedural shapes of {classes} classes of furniture and household things, made by `hiergen.data.shapes.procedural`"
#: The commands that write a run, by the settings that its report holds.
COMMANDS: dict[str, tuple[str, type[Any]]] = {
    "QuickstartSettings": ("hiergen quickstart", QuickstartSettings),
    "ShapesQuickstartSettings": ("hiergen quickstart shapes", ShapesQuickstartSettings),
    "VideoQuickstartSettings": ("hiergen quickstart video", VideoQuickstartSettings),
}
#: Settings that change nothing about the weights.
WITHOUT_EFFECT = ("kind", "out", "seed", "num_generated", "num_test", "depth", "num_workers", "densities")

Measured = tuple[list[str], str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder that a quickstart wrote")
    parser.add_argument("--pipeline", default="pipeline", help="which of its pipelines")
    parser.add_argument("--num-steps", type=int, help="steps of the generator, where other than the quickstart's")
    parser.add_argument("--threads", type=int, help="threads that it ran on, where its report does not say")
    parser.add_argument(
        "--guidance", type=float, help="guidance scale of the generator, where other than the quickstart's"
    )
    options = parser.parse_args()
    run = Path(options.run)
    report = json.loads((run / "report.json").read_text())
    report.setdefault("threads", options.threads)
    chosen = {"num_steps": options.num_steps, "guidance_scale": options.guidance}
    sampling = {**report["sampling"], **{name: value for name, value in chosen.items() if value}}
    pipeline = from_pretrained(str(run / options.pipeline)).to(torch.float16)
    kind = KINDS[type(pipeline).__name__ + (" of emoji" if report["settings"].get("data") == "emoji" else "")]
    folder = PACKAGED / kind.folder(report["settings"])
    with atomic_directory(folder) as temporary:
        pipeline.save_pretrained(temporary)
        for config in Path(temporary).rglob("*.json"):
            stored = json.loads(config.read_text())
            stored.pop("_name_or_path", None)
            write_json(config, stored)
        # What lets programs without hiergen's names load a folder by itself; these folders come with hiergen.
        (Path(temporary) / "pipeline.py").unlink(missing_ok=True)
        for file in Path(temporary).rglob("*.safetensors"):
            halve(file, getattr(pipeline, file.parent.name))
            file.chmod(0o644)
    measured, about = kind.measure(folder, report, sampling)
    tokenizer, generator = report["settings"]["tokenizer"], report["settings"]["generator"]
    title = f"{kind.title}: {tokenizer} + {generator}"
    # Menus say what it makes; the card, of which parts it is.
    notes = {
        "title": TITLES.get(folder.name, kind.title),
        "about": about,
        "classes": list(kind.classes),
        "sampling": sampling,
        **kind.notes,
    }
    write_json(folder / NOTES_FILE, notes)
    write_text(folder / "README.md", card(title, report, kind.data(report["settings"]), folder, sampling, measured))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 2**20:.1f} MiB\n{about}")


def halve(file: Path, model: torch.nn.Module) -> None:
    """Store the parameters in half precision that a model keeps in float32 while it runs; its tables stay as they are."""
    names = {name for name, _ in model.named_parameters()}
    tensors = load_file(file)
    save_file({name: x.half() if name in names else x for name, x in tensors.items()}, file, metadata={"format": "pt"})


@torch.no_grad()
def measure_digits(folder: Path, report: dict[str, Any], sampling: dict[str, Any]) -> Measured:
    """Return lines for the card and a sentence for the demo."""
    pipe = load_model(str(folder)).model
    train, test = load_digits("train"), load_digits("test")
    found = rebuild_prefixes(pipe.tokenizer, test.images)
    ratios = [float(psnr(images, test.images).mean()) for images in found.images]
    judge = LabelClassifier(to_uint8(train.images), train.labels)
    labels = [digit for digit in range(10) for _ in range(50)]
    made = pipe(labels, generator=make_rng(1, "card"), output_type="pt", **sampling).images
    agreement = judge.accuracy(to_uint8(made), torch.tensor(labels))
    real = judge.accuracy(to_uint8(test.images), test.labels)
    lines = [
        f"- PSNR on the {len(test)} held-out digits by number of tokens read: "
        + ", ".join(f"{ratio:.2f} dB ({tokens})" for ratio, tokens in zip(ratios, found.tokens, strict=True)),
        f"- a support vector machine trained on the real train split agrees with {agreement:.1%} of {len(labels)} generated "
        f"digits, 50 per class, and with {real:.1%} of the real held-out ones",
    ]
    about = (
        f"Trained on 1,442 handwritten digits, nothing else. {ratios[-1]:.1f} dB on held-out digits from {found.tokens[-1]} "
        f"tokens; a classifier reads {agreement:.1%} of its samples as the digit asked for."
    )
    return lines, about


def measure_shapes(folder: Path, report: dict[str, Any], sampling: dict[str, Any]) -> Measured:
    """Return lines for the card and a sentence for the demo, in minutes."""
    with tempfile.TemporaryDirectory() as out:
        settings = from_json(ShapesQuickstartSettings, {**report["settings"], "out": out})
        measured = measure_pipeline(load_model(str(folder)).model, settings)
    return describe_shapes({**report, **measured})


def describe_shapes(report: dict[str, Any]) -> Measured:
    """Return lines for the card and a sentence for the demo from what was measured."""
    levels, made = report["reconstruction"]["levels"], report["generation"]
    lines = [
        f"- {level['tokens']} tokens, {report['reconstruction']['shapes']}: {_scores(level)} ({level['protocol']})"
        for level in levels
    ]
    lines += [
        f"- {one['count']} {one['of']} against {one['against']}: minimum matching distance {one['matching_distance']:.4f}, "
        f"coverage {one['coverage']:.3f}, 1-NNA {one['nearest_neighbor_accuracy']:.3f} ({made['protocol']})"
        for one in made["sets"]
    ]
    lines.append(
        f"- the judge ({made['judge']}) agrees with {made['class_agreement']:.1%} of the shapes generated by class, "
        f"{made['without_surface']} of them without a surface, and with {made['class_agreement_real']:.1%} of real held-out ones"
    )
    lines.append(
        f"- {made['whole']} of {made['sets'][0]['count']} generated shapes are of as many pieces as their class, and "
        f"{made['whole_but_for_specks']} when detached pieces of less than {SPECK:.1%} of the volume are left out, as the demo does "
        "(`ExtractionSettings.min_piece`)"
    )
    about = (
        f"Trained on {report['settings']['num_shapes']:,} procedural shapes of {len(PROCEDURAL_CLASSES)} classes, nothing else. "
        f"Held-out shapes come back with an IoU of {levels[-1]['iou']:.2f}; {made['class_agreement']:.0%} of its samples are "
        "nearest to a training shape of the class asked for. Arm rests of chairs and boards of shelves, which are thin, can break; specks beside a "
        f"shape, below {SPECK:.1%} of its volume, are left out."
    )
    return lines, about


@torch.no_grad()
def measure_views(folder: Path, report: dict[str, Any], sampling: dict[str, Any]) -> Measured:
    """Return lines for the card and a sentence for the demo."""
    import numpy as np

    settings = report["settings"]
    pipe, seed = load_model(str(folder)).model, settings["seed"]
    count, extraction = len(PROCEDURAL_CLASSES) * 4, ExtractionSettings(depth=settings["depth"])
    test = [procedural_shape(TEST_OFFSET + number, seed=seed).to_mesh() for number in range(count)]
    views, rng = ViewSettings(num_views=1, size=settings["view_size"]), np.random.default_rng(seed)
    pictures = [open_view(render_views(mesh, views, rng=rng)[0][0], max_pixels=10**6) for mesh in test]
    meshes = pipe(pictures, generator=make_rng(1, "card"), extraction=extraction, **sampling).meshes
    scores = reconstruction_scores(meshes, test, seed=seed)
    shuffled = reconstruction_scores(meshes[1:] + meshes[:1], test, seed=seed)
    lines = [
        f"- generated from a view of each of {count} held-out shapes, against the shape that it shows: {_scores(scores)}",
        f"- the same against another shape, as a yardstick: {_scores(shuffled)}",
    ]
    about = (
        f"Trained on views of {settings['num_shapes']:,} procedural shapes, nothing else: it wants one object on white, seen "
        f"from the front. IoU {scores['iou']:.2f} with the held-out shape that a view shows."
    )
    return lines, about


def _scores(scores: dict[str, Any]) -> str:
    thresholds = ", ".join(f"F at {name} {value:.3f}" for name, value in scores["f_scores"].items())
    distance = "no surface" if scores["chamfer"] is None else f"Chamfer {scores['chamfer']:.4f}"
    return f"IoU {scores['iou']:.3f}, {distance}, {thresholds}; {scores['without_surface']} without a surface"


@torch.no_grad()
def measure_clips(folder: Path, report: dict[str, Any], sampling: dict[str, Any]) -> Measured:
    """Return lines for the card and a sentence for the demo."""
    settings = report["settings"]
    pipe, seed = load_model(str(folder)).model, settings["seed"]
    size = pipe.tokenizer.config["video_size"]
    data = settings.get("data", "digits")
    train = quickstart_clips("train", settings["num_clips"], size, seed=seed, data=data)
    test = quickstart_clips("test", settings["num_test"], size, seed=seed, data=data)
    real = from_uint8(test.videos)
    rebuilt = compare_videos(pipe.tokenizer.decode(pipe.tokenizer.encode(real)).clamp(-1, 1), real)
    labels = [label for label in range(10) for _ in range(10)]
    batches = [labels[k : k + 10] for k in range(0, len(labels), 10)]
    made = [
        pipe(batch, generator=make_rng(1, "card", number), output_type="pt", **sampling).frames
        for number, batch in enumerate(batches)
    ]
    judge, thing = clip_judge(data, train), MOVING[data].thing
    agreement, _ = judge.accuracy(to_uint8(torch.cat(made)), torch.tensor(labels))
    yardstick, _ = judge.accuracy(test.videos, test.labels)
    lines = [
        f"- tokenizer: {rebuilt['psnr_db']:.2f} dB on {len(test.labels)} held-out clips "
        f"from {sum(spec.num_tokens for spec in pipe.tokenizer.specs)} tokens",
        f"- a support vector machine on the frames of real training clips reads {agreement:.0%} of {len(labels)} generated clips, "
        f"10 per class, dense attention, as the {thing} asked for, and {yardstick:.0%} of real held-out clips; chance is 10%",
    ]
    about = (
        f"Trained on {settings['num_clips']:,} clips of {MOVING[data].what}, nothing else. A classifier reads "
        f"{agreement:.0%} of its clips as the {thing} asked for."
    )
    return lines, about


def command(settings: dict[str, Any], threads: int | None) -> str:
    """Return the command that trained a model, with every setting that is not the default."""
    verb, kind = COMMANDS[settings["kind"]]
    usual = to_json(kind())
    changed = [
        f" --{name.replace('_', '-')} {value}"
        for name, value in settings.items()
        if name not in WITHOUT_EFFECT and value != usual[name]
    ]
    return f"`{verb}{''.join(changed)}`, seed {settings['seed']}" + (
        f", {threads} CPU thread{'s' * (threads > 1)} (OMP_NUM_THREADS={threads})" if threads else ""
    )


def card(
    title: str,
    report: dict[str, Any],
    data: str,
    folder: Path,
    sampling: dict[str, Any],
    measured: list[str],
) -> str:
    """Return a model card."""
    parameters = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in load_model(str(folder)).model.components.items()
    }
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        "---",
        "library_name: hiergen",
        "license: apache-2.0",
        "---",
        f"# {title}",
        "A small model that shows what levels of tokens are. It knows its training data and nothing else; it is no measure of "
        "what its method can do.",
        "## Trained",
        f"- data: {data}",
        f"- command: {command(report['settings'], report['threads'])} with {versions}; then `demos/ship_models.py`",
        f"- parameters: {', '.join(f'{name} {count:,}' for name, count in parameters.items())}; stored in float16, run in float32",
        "## Measured, on these files",
        *measured,
        f"- sampled with `{json.dumps(sampling)}`",
        "## Use",
        "```python",
        "import hiergen",
        "",
        f'pipe = hiergen.from_pretrained("{folder.name}")',
        "```",
    ]
    return "\n".join(lines).replace("\n## ", "\n\n## ").replace("\n# ", "\n\n# ") + "\n"


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a kind of pipeline is called, knows, and is measured by."""

    title: str
    classes: tuple[str, ...]
    folder: Callable[[dict[str, Any]], str]
    data: Callable[[dict[str, Any]], str]
    measure: Callable[[Path, dict[str, Any], dict[str, Any]], Measured]
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


def _shapes(settings: dict[str, Any]) -> str:
    return SHAPES.format(count=settings["num_shapes"], classes=len(PROCEDURAL_CLASSES))


NUMERALS = tuple("0123456789")
#: Titles of the two models of digits, by folder.
TITLES = {"digits-1d": "Digits, level by level", "digits-2d": "Digits, out of noise"}
#: By the pipeline's class. The order of the folders is that of the demo's menus.
KINDS = {
    "ClassToImagePipeline": Kind(
        "Digits",
        NUMERALS,
        lambda settings: "digits-1d" if settings["tokenizer"] == "restok-tiny" else "digits-2d",
        lambda settings: ENLARGED,
        measure_digits,
    ),
    "ClassToShapePipeline": Kind(
        "Shapes by class",
        PROCEDURAL_CLASSES,
        lambda settings: "shapes-by-class",
        _shapes,
        measure_shapes,
        {"extraction": {"min_piece": SPECK}},
    ),
    "ImageToShapePipeline": Kind(
        "Shapes by picture",
        (),
        lambda settings: "shapes-by-picture",
        lambda settings: (
            f"{settings['num_views']} clay views of {settings['view_size']} pixels of each of {_shapes(settings)}"
        ),
        measure_views,
    ),
    "ClassToVideoPipeline": Kind(
        "Clips of digits",
        NUMERALS,
        lambda settings: "clips",
        lambda settings: MOVING_DIGITS.format(count=settings["num_clips"]),
        measure_clips,
        {"clips": "digits"},
    ),
    "ClassToVideoPipeline of emoji": Kind(
        "Clips of emoji",
        tuple(EMOJI),
        lambda settings: "emoji-clips",
        lambda settings: MOVING_EMOJI.format(count=settings["num_clips"]),
        measure_clips,
        {"clips": "emoji"},
    ),
}


if __name__ == "__main__":
    main()
