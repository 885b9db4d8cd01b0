"""Models for the demo with random weights: what is tested is the demo, and it must not need trained ones."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch

from hiergen.config import to_json
from hiergen.demo.library import NOTES_FILE, DemoModel, Library, ModelNotes
from hiergen.files import write_json
from hiergen.generators.sequences.hnet.model import HNet
from hiergen.pipelines.image import ClassToImagePipeline, TextToImagePipeline
from hiergen.pipelines.shape import ClassToShapePipeline, ImageToShapePipeline
from hiergen.pipelines.video import ClassToVideoPipeline
from hiergen.pretrained.image_encoder import ImageEncoder
from hiergen.pyramid import specs_to_json
from hiergen.registry import create
from hiergen.tokenizers.pyramid_vae.model import PyramidVAE


def image_pipeline() -> ClassToImagePipeline:
    # Random weights that tell most pictures apart (38 of 40 digits), whichever test comes first.
    torch.manual_seed(3)
    tokenizer = create("restok-tiny").eval()
    generator = create("har-tiny", depth=1, level_specs=specs_to_json(tokenizer.specs)).eval()
    pipe = ClassToImagePipeline(tokenizer=tokenizer, generator=generator)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def word_pipeline() -> TextToImagePipeline:
    torch.manual_seed(4)
    tokenizer = create("hieratok-tiny").eval()
    told = {"num_classes": None, "text_shape": [4, 8], "text_encoder": {"name": "bytes", "num_pieces": 64, "depth": 0}}
    generator = create("flow-tiny", depth=1, level_specs=specs_to_json(tokenizer.specs), **told).eval()
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pipe = TextToImagePipeline(tokenizer=tokenizer, generator=generator)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def shape_pipeline() -> ClassToShapePipeline:
    tokenizer = create("pyramid-vae-tiny").eval()
    generator = create("mar3d-tiny", depth=1, num_classes=8, level_specs=specs_to_json(tokenizer.specs)).eval()
    pipe = ClassToShapePipeline(tokenizer=tokenizer, generator=generator)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture_pipeline(tokenizer: PyramidVAE) -> ImageToShapePipeline:
    encoder = ImageEncoder(encoders=[{"kind": "conv", "config": {"image_size": 16, "dim": 8}}]).eval()
    generator = create(
        "mar3d-tiny",
        depth=1,
        num_classes=None,
        feature_shapes=encoder.feature_shapes,
        level_specs=specs_to_json(tokenizer.specs),
    ).eval()
    pipe = ImageToShapePipeline(tokenizer=tokenizer, generator=generator, image_encoder=encoder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def video_pipeline() -> ClassToVideoPipeline:
    tokenizer = create("patches-tiny", video_size=[8, 48, 48]).eval()
    generator = create("flow-video-tiny", depth=1, level_specs=specs_to_json(tokenizer.specs)).eval()
    # A new model's last layers are zero: whatever is inside would not be seen.
    for linear in (generator.blocks[0].modulation, generator.final_modulation, generator.final_linear):
        torch.nn.init.normal_(linear.weight, std=0.2, generator=torch.Generator().manual_seed(1))
    pipe = ClassToVideoPipeline(tokenizer=tokenizer, generator=generator)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def text_model() -> HNet:
    torch.manual_seed(1)
    model: HNet = create("hnet-tiny", layout=["m1", ["T1"], "m1"], dims=[32, 64]).eval()
    return model


@pytest.fixture(scope="session")
def library() -> Library:
    digits = ModelNotes(classes=tuple("0123456789"), about="Random weights.")
    by_class = shape_pipeline()
    quick = ModelNotes(sampling={"num_steps": 1, "head_steps": 2, "guidance_scale": 1.0})
    words = ModelNotes(sampling={"num_steps": 3, "guidance_scale": 2.0}, prompts=("red heart", "blue <cat> & dog"))
    return Library(
        {
            "one-dimensional": DemoModel(image_pipeline(), digits),
            "two-dimensional": DemoModel(create("hieratok-tiny").eval(), digits),
            "words": DemoModel(word_pipeline(), words),
            "shapes": DemoModel(by_class, quick),
            "seen": DemoModel(picture_pipeline(by_class.tokenizer), quick),
            "clips": DemoModel(video_pipeline(), ModelNotes(sampling={"num_steps": 2, "timestep_shift": 1.0})),
            "bytes": DemoModel(text_model(), ModelNotes()),
        }
    )


@dataclasses.dataclass(frozen=True)
class Server:
    """A demo that runs in a process of its own, with a password."""

    url: str
    name: str = "ada"
    password: str = "correct horse"


@contextlib.contextmanager
def demo(models: Mapping[str, DemoModel], folder: Path, options: Sequence[str]) -> Iterator[str]:
    """Run `hiergen demo` on models, in a process of its own, and yield its address."""
    for title, entry in models.items():
        entry.model.save_pretrained(folder / title)
        write_json(folder / title / NOTES_FILE, to_json(entry.notes))
    command = [sys.executable, "-m", "hiergen", "demo", *(str(folder / title) for title in models)]
    with (
        open(folder / "log", "w") as log,
        subprocess.Popen(
            [*command, "--packaged", "False", *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=folder,
            env={**os.environ, "GRADIO_TEMP_DIR": str(folder / "cache"), "PYTHONUNBUFFERED": "1"},
        ) as process,
    ):
        found = None
        while found is None and (line := process.stdout.readline()):
            found = re.search(r"http://\S+", line)
        assert found is not None, Path(folder / "log").read_text()
        yield found[0].rstrip("/")
        assert process.poll() is None, f"the server ended by itself: {process.returncode}"
        process.terminate()


@pytest.fixture(scope="session")
def run_demo() -> Callable[..., contextlib.AbstractContextManager[str]]:
    return demo


@pytest.fixture(scope="session")
def server(library, tmp_path_factory) -> Iterator[Server]:
    """`hiergen demo` on the models of `library`, with small limits."""
    pytest.importorskip("gradio", reason="the demo's page needs gradio")
    folder = tmp_path_factory.mktemp("demo")
    (folder / "people").write_text(f"{Server.name}:{Server.password}\n")
    limits = {"max_upload_mb": 1, "max_queue": 4, "max_pixels": 250_000, "max_seconds": 300, "ready_seconds": 0.1}
    options = [word for name, value in limits.items() for word in (f"--{name}", str(value))]
    with demo(library.models, folder, ["--auth_file", str(folder / "people"), *options]) as address:
        yield Server(address)
