"""Write the files that `test_files_of_before.py` reads, into a folder: one small thing of each kind that hiergen saves.

python tests/compatibility/make_files.py FOLDER
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from hiergen.data.config import DataConfig
from hiergen.data.images.digits import load_digits
from hiergen.data.images.in_memory import ImageSet
from hiergen.data.shapes.building import PrepareShapesSettings
from hiergen.data.shapes.preparation import prepare_shapes
from hiergen.data.shapes.views import ViewSettings
from hiergen.evaluation.features.extractors import Extractor, build_extractor, register_extractor
from hiergen.evaluation.features.references import open_reference
from hiergen.evaluation.images.reconstruction import evaluate_reconstructions
from hiergen.evaluation.settings import DistanceConfig, ExtractorConfig, PassConfig, RfidSettings
from hiergen.files import write_json
from hiergen.geometry.surface_sampling import SamplingSettings
from hiergen.pipelines.encoding import encode_images
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pipelines.shape import ClassToShapePipeline
from hiergen.pyramid import specs_to_json
from hiergen.registry import create
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import fit
from hiergen.training.tasks.settings import GeneratorTaskConfig

RESTOK = {
    "image_size": 16,
    "cnn_channels": 4,
    "cnn_multipliers": [1, 1, 1, 1],
    "cnn_groups": 2,
    "z_channels": 8,
    "vocab_size": 32,
}
RESTOK |= {
    "encoder_dim": 8,
    "encoder_depth": 2,
    "encoder_heads": 2,
    "decoder_dim": 8,
    "decoder_depth": 1,
    "decoder_heads": 2,
}
HAR = {"dim": 8, "depth": 1, "num_heads": 2}
VAE = {"num_tokens": [3, 5], "token_dim": 4, "width": 8, "num_heads": 2, "encoder_depth": 1, "decoder_depth": 1}
CASCADE = {"num_buffer": 2, "dim": 4, "depth": 1, "num_heads": 2, "head_dim": 4, "head_depth": 1}
SAMPLING = {"num_surface": 48, "num_volume": 48, "num_near": 24, "num_farthest": 8}
QUICK = {"num_steps": 2, "head_steps": 2, "guidance_scale": 1.0}
#: Where fields of shapes are compared.
POINTS = torch.linspace(-1, 1, 48).view(16, 3)


def train_config() -> TrainConfig:
    return TrainConfig(
        task=GeneratorTaskConfig(overrides=HAR, codes="codes"),
        out="run",
        samples=48,
        batch_size=8,
        optim=OptimConfig(lr=1e-2, warmup_samples=16),
        checkpoint_every=24,
        log_every=8,
        trackers=(),
    )


def prepare_settings() -> PrepareShapesSettings:
    return PrepareShapesSettings(
        "procedural",
        "shapes",
        count=2,
        sampling=SamplingSettings(**SAMPLING),
        views=ViewSettings(num_views=1, size=16),
        num_workers=0,
        show_progress=False,
    )


def evaluation_settings() -> RfidSettings:
    return RfidSettings(
        tokenizer="pipeline/tokenizer",
        out="evaluation",
        data=DataConfig(split="test", size=16),
        num_images=20,
        extractor=ExtractorConfig("channel-means"),
        lpips="none",
        distances=DistanceConfig(resamples=5),
        passes=PassConfig(batch_size=10, part_size=10, device="cpu"),
    )


def reference(cache: str) -> dict[str, torch.Tensor]:
    """Return moments of the digits held out, from a cache or into it."""
    extractor = build_extractor(ExtractorConfig("channel-means"))
    data, passes = DataConfig(split="test", size=16), PassConfig(part_size=200, device="cpu")
    cpu = torch.device("cpu")
    found = open_reference(data, extractor, rounding="nearest", passes=passes, cache=cache, device=cpu)
    return {"mean": torch.from_numpy(found.pool.mean), "covariance": torch.from_numpy(found.pool.covariance)}


def some_images() -> ImageSet:
    digits = load_digits("test", size=16)
    return ImageSet(digits.images[:20], digits.labels[:20], digits.classes)


def register_channel_means() -> None:
    def build(config: ExtractorConfig, device: torch.device) -> Extractor:
        def features(images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"pool": images.float().mean(dim=(2, 3))}

        return Extractor("channel-means", "mean of each channel", features, "FD-channel-means", 3, "channel-means-1")

    register_extractor("channel-means", build)


def _models() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tokenizer = create("restok-tiny", **RESTOK).eval()
    generator = create("har-tiny", **HAR, level_specs=specs_to_json(tokenizer.specs)).eval()
    pipe = ClassToImagePipeline(tokenizer=tokenizer, generator=generator)
    pipe.save_pretrained("pipeline")
    made = pipe([3], generator=torch.Generator().manual_seed(0), output_type="pt")
    vae = create("pyramid-vae-tiny", **VAE).eval()
    cascade = create("mar3d-tiny", **CASCADE, num_classes=8, level_specs=specs_to_json(vae.specs)).eval()
    shapes = ClassToShapePipeline(tokenizer=vae, generator=cascade)
    shapes.save_pretrained("shape_pipeline")
    shape = shapes([3], generator=torch.Generator().manual_seed(0), **QUICK)
    with torch.no_grad():
        field = vae.decode(shape.pyramid).shape(0)(POINTS)
    encode_images(tokenizer, some_images(), "codes", flips=True)
    ids = {f"ids_{k}": level for k, level in enumerate(made.pyramid.levels)}
    tokens = {f"tokens_{k}": level for k, level in enumerate(shape.pyramid.levels)}
    return {"images": made.images, "field": field, **ids, **tokens}


def make(folder: Path) -> None:
    os.chdir(folder)
    register_channel_means()
    expected = _models()
    fit(train_config(), cpu=True)
    # What a run leaves that was killed after its first checkpoint, and what it logged when it was not.
    shutil.move("run/log.jsonl", "log_of_whole_run.jsonl")
    shutil.rmtree("run/model")
    shutil.rmtree("run/checkpoints/samples-000000000048")
    prepare_shapes(prepare_settings())
    report = evaluate_reconstructions(evaluation_settings())
    assert report is not None
    for path in Path("evaluation").iterdir():
        if path.name != "parts":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    moments = {f"reference_{name}": value for name, value in reference("references").items()}
    save_file({name: value.contiguous() for name, value in {**expected, **moments}.items()}, "expected.safetensors")
    write_json(Path("metrics.json"), report["metrics"])


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True)
    make(Path(sys.argv[1]))
    print(json.dumps({str(p): p.stat().st_size for p in sorted(Path(".").rglob("*")) if p.is_file()}, indent=1))
