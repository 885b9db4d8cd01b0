"""Make a quickstart's result a model that comes with the package: half precision, a card, and what the demo says about it.

    python demos/ship_models.py quickstart
    python demos/ship_models.py quickstart-hieratok --num-steps 10

The numbers of the card are measured here, on the files that are shipped.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from hiergen.data.digits import load_digits
from hiergen.data.images import to_uint8
from hiergen.data.procedural_shapes import PROCEDURAL_CLASSES, procedural_shape
from hiergen.data.shapes import TEST_OFFSET, open_shapes
from hiergen.data.surface_extraction import ExtractionSettings
from hiergen.demo.library import NOTES_FILE, PACKAGED, load_model
from hiergen.files import atomic_directory, write_json, write_text
from hiergen.metrics.classifiers import LabelClassifier
from hiergen.metrics.pixel import psnr
from hiergen.pipelines.loading import from_pretrained
from hiergen.pipelines.prefixes import rebuild_prefixes
from hiergen.pipelines.shape import decode_meshes
from hiergen.pipelines.shape_encoding import cloud_config, encode_clouds
from hiergen.quickstart.shape_scores import generation_scores, reconstruction_scores
from hiergen.seeding import make_rng

DIGITS = (
    "scikit-learn's handwritten digits (1,442 training images of 8x8 enlarged to 32x32; UCI Optical Recognition of "
    "Handwritten Digits, Alpaydin and Kaynak, CC BY 4.0)"
)
#: Folder by tokenizer; their order is that of the demo's menus.
FOLDERS = {"restok-tiny": "digits-1d", "hieratok-tiny": "digits-2d", "pyramid-vae-tiny": "shapes"}
SHAPES = "procedural furniture and household shapes made by `hiergen.data.procedural_shapes`, {count} training shapes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder that a quickstart wrote")
    parser.add_argument("--num-steps", type=int, help="steps of the generator, where other than the quickstart's")
    options = parser.parse_args()
    run = Path(options.run)
    report = json.loads((run / "report.json").read_text())
    sampling = {**report["sampling"], **({"num_steps": options.num_steps} if options.num_steps else {})}
    is_shapes = "tokenizer_samples" in report["settings"]
    tokenizer, generator = report["settings"]["tokenizer"], report["settings"]["generator"]
    folder = PACKAGED / FOLDERS[tokenizer]
    with atomic_directory(folder) as temporary:
        from_pretrained(str(run / "pipeline")).to(torch.float16).save_pretrained(temporary)
    measured, about = measure_shapes(folder, report, sampling) if is_shapes else measure_digits(folder, sampling)
    title = f"{'Shapes' if is_shapes else 'Digits'}: {tokenizer} + {generator}"
    classes = list(PROCEDURAL_CLASSES) if is_shapes else [str(digit) for digit in range(10)]
    examples = "" if is_shapes else "digits"
    notes = {"title": title, "about": about, "classes": classes, "sampling": sampling, "examples": examples}
    write_json(folder / NOTES_FILE, notes)
    write_text(folder / "README.md", card(title, report, sampling, measured, is_shapes=is_shapes))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 2**20:.1f} MiB\n{about}")


@torch.no_grad()
def measure_digits(folder: Path, sampling: dict[str, Any]) -> tuple[list[str], str]:
    """Return lines for the card and a sentence for the demo."""
    pipe = load_model(str(folder)).model
    train, test = load_digits("train"), load_digits("test")
    found = rebuild_prefixes(pipe.tokenizer, test.images)
    ratios = [float(psnr(images, test.images).mean()) for images in found.images]
    judge = LabelClassifier(to_uint8(train.images), train.labels)
    labels = [digit for digit in range(10) for _ in range(20)]
    made = pipe(labels, generator=make_rng(1, "card"), output_type="pt", **sampling).images
    agreement = judge.accuracy(to_uint8(made), torch.tensor(labels))
    real = judge.accuracy(to_uint8(test.images), test.labels)
    lines = [
        f"- PSNR on the {len(test)} held-out digits by number of tokens read: "
        + ", ".join(f"{ratio:.2f} dB ({tokens})" for ratio, tokens in zip(ratios, found.tokens, strict=True)),
        f"- a support vector machine trained on the real train split agrees with {agreement:.1%} of {len(labels)} generated "
        f"digits, 20 a class, and with {real:.1%} of the real held-out ones",
    ]
    about = (
        f"Trained on 1,442 handwritten digits, nothing else. {ratios[-1]:.1f} dB on held-out digits from {found.tokens[-1]} "
        f"tokens; a classifier reads {agreement:.0%} of its samples as the digit asked for."
    )
    return lines, about


@torch.no_grad()
def measure_shapes(folder: Path, report: dict[str, Any], sampling: dict[str, Any]) -> tuple[list[str], str]:
    """Return lines for the card and a sentence for the demo."""
    pipe, settings = load_model(str(folder)).model, report["settings"]
    count, extraction = len(PROCEDURAL_CLASSES) * 4, ExtractionSettings(depth=settings["depth"])
    test = [procedural_shape(TEST_OFFSET + number, seed=settings["seed"]).to_mesh() for number in range(count)]
    train = [procedural_shape(number, seed=settings["seed"]).to_mesh() for number in range(2 * count)]
    clouds = dataclasses.replace(cloud_config(pipe.tokenizer, "procedural"), split="test", seed=settings["seed"])
    shapes = open_shapes(dataclasses.replace(clouds, count=count))
    lines, best = [], 0.0
    pyramid = encode_clouds(pipe.tokenizer, shapes, range(count))
    for levels in range(1, len(pyramid) + 1):
        scores = reconstruction_scores(decode_meshes(pipe.tokenizer, pyramid.prefix(levels), extraction), test)
        best = scores["iou"]
        lines.append(
            f"- {pyramid.specs[levels - 1].num_tokens} tokens: {json.dumps(scores)} on {count} held-out shapes"
        )
    labels = [number % len(PROCEDURAL_CLASSES) for number in range(count)]
    meshes = pipe(labels, generator=make_rng(1, "card"), extraction=extraction, **sampling).meshes
    generation = generation_scores(meshes, test, train)
    lines.append(f"- generated, {count} shapes: {json.dumps(generation)}")
    about = f"Trained on procedural shapes of {len(PROCEDURAL_CLASSES)} classes, nothing else. IoU {best:.2f} on held-out shapes."
    return lines, about


def card(title: str, report: dict[str, Any], sampling: dict[str, Any], measured: list[str], *, is_shapes: bool) -> str:
    """Return a model card."""
    settings = report["settings"]
    command = "hiergen quickstart-shapes" if is_shapes else "hiergen quickstart"
    if not is_shapes and settings["tokenizer"] != "restok-tiny":
        command += f" --tokenizer {settings['tokenizer']} --generator {settings['generator']}"
    data = SHAPES.format(count=settings["num_shapes"]) if is_shapes else DIGITS
    parameters = ", ".join(f"{name} {count:,}" for name, count in report["parameters"].items())
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
        f"- command: `{command}`, seed {settings['seed']} ({versions})",
        f"- parameters: {parameters}; stored in float16, run in float32",
        "## Measured, on these files",
        *measured,
        f"- sampled with `{json.dumps(sampling)}`",
        "## Use",
        "```python",
        "import hiergen",
        "from hiergen.demo.library import PACKAGED",
        "",
        f'pipe = hiergen.from_pretrained(PACKAGED / "{FOLDERS[settings["tokenizer"]]}")',
        "```",
    ]
    return "\n".join(lines).replace("\n## ", "\n\n## ").replace("\n# ", "\n\n# ") + "\n"


if __name__ == "__main__":
    main()
