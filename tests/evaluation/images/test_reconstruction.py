from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hiergen.data.images.digits import load_digits
from hiergen.data.images.pixels import to_uint8
from hiergen.evaluation.comparison import compare
from hiergen.evaluation.images.reconstruction import evaluate_reconstructions
from hiergen.evaluation.settings import DistanceConfig, ExtractorConfig, PassConfig, RfidSettings
from hiergen.metrics.fidelity import FeatureExtractor, compare_image_sets
from hiergen.metrics.pixel import psnr
from hiergen.pipelines.prefixes import rebuild_prefixes
from hiergen.registry import create
from hiergen.seeding import make_rng
from hiergen.tokenizers.kl_autoencoder.model import KLAutoencoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("rfid")
    for name, seed in (("first", 0), ("second", 1)):
        torch.manual_seed(seed)
        create("restok-tiny").save_pretrained(root / name)
    torch.manual_seed(0)
    create("hieratok-tiny").save_pretrained(root / "continuous")
    return root


def settings(folder: Path, tokenizer: str, **changes: Any) -> RfidSettings:
    plain = RfidSettings(
        tokenizer=str(folder / tokenizer),
        out=str(folder / "out" / tokenizer),
        num_images=20,
        prefixes=True,
        extractor=ExtractorConfig("mean-color"),
        lpips="none",
        distances=DistanceConfig(resamples=5),
        passes=PassConfig(batch_size=7, part_size=10, device="cpu"),
    )
    return dataclasses.replace(plain, **changes)


def test_figures_are_those_of_the_parts_put_together_by_hand(folder: Path) -> None:
    """Every prefix, against decoding in one go, the pixel metric of the rounded images, and torch-fidelity from end to end."""
    report = evaluate_reconstructions(settings(folder, "first"))
    assert report is not None
    images = load_digits("test", size=32).images[:20]
    by_hand = rebuild_prefixes(create("restok-tiny").from_pretrained(folder / "first").eval(), images)
    real = to_uint8(images)
    assert [row["tokens"] for row in report["rate_distortion"]] == [1, 2, 4, 8, 16]
    assert [row["bits"] for row in report["rate_distortion"]] == [9, 18, 36, 72, 144]
    for row, rebuilt in zip(report["rate_distortion"], by_hand.images, strict=True):
        pixels = to_uint8(rebuilt)
        expected = psnr(pixels / 127.5 - 1, real / 127.5 - 1).mean()
        assert row["metrics"]["psnr"] == pytest.approx(float(expected), rel=1e-5)

    class MeanColor(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().mean(dim=(2, 3))

    whole = compare_image_sets(pixels, real, FeatureExtractor("by-hand", "mean color", MeanColor()))
    assert report["metrics"]["rFD-mean-color"] == pytest.approx(whole["frechet_distance"], rel=1e-3)
    colors = [part.float().mean(dim=(2, 3)) for part in (pixels, real)]
    assert report["metrics"]["rKD-mean-color"] == pytest.approx(_kernel(*colors), rel=1e-3)
    assert not [name for name in report["metrics"] if name.startswith("K")]
    assert "torch-fidelity's KID keeps them and is lower" in report["protocol"]["kernel distance"]
    assert report["metrics"]["precision"] == pytest.approx(whole["precision"])
    assert report["tokens"]["all_levels"]["num_ids"] == 20 * 16
    text = (folder / "out" / "first" / "report.md").read_text()
    assert "## Rate and distortion" in text
    assert "rounding" in text
    for name in ("examples.png", "rate_distortion.png", "reference.npz", "values.safetensors"):
        assert (folder / "out" / "first" / name).stat().st_size > 0


def test_two_tokenizers_are_compared_on_the_same_images(folder: Path) -> None:
    for tokenizer in ("first", "second"):
        evaluate_reconstructions(settings(folder, tokenizer))
    first, second = folder / "out" / "first", folder / "out" / "second"
    itself = compare(first, first, resamples=20)
    assert itself["resampling"].endswith("pairs of the same items")
    assert all(row["difference"] == 0 for row in itself["metrics"].values())
    # Precision and recall have both reports' own intervals, whatever they share.
    paired = {name for name, row in itself["metrics"].items() if row["interval"] != "from both reports' own"}
    assert paired == {"psnr", "ssim", "rFD-mean-color", "rKD-mean-color"}
    assert all(itself["metrics"][name]["half_width"] == pytest.approx(0, abs=1e-9) for name in paired)
    other = compare(first, second, resamples=20)
    row = other["metrics"]["psnr"]
    assert row["difference"] == pytest.approx(row["second"] - row["first"])
    assert row["half_width"] > 0
    # rKID by hand: ten blocks of two images, the same ones of both sets and of both reports.
    sets = [load_file(report / "values.safetensors") for report in (first, second)]
    order = torch.randperm(20, generator=make_rng(0, "kernel-blocks")).split(2)
    by_block = [[_kernel(s["pool"][block], s["reference_pool"][block]) for block in order] for s in sets]
    gaps = np.subtract(by_block[1], by_block[0])
    assert other["metrics"]["rKD-mean-color"]["half_width"] == pytest.approx(
        2.2622 * gaps.std(ddof=1) / 10**0.5, rel=1e-3
    )
    truncated = settings(folder, "second", rounding="truncate", out=str(folder / "truncated"), prefixes=False)
    evaluate_reconstructions(truncated)
    with pytest.raises(ValueError, match=r"cannot be compared, they differ in protocol.rounding"):
        compare(first, folder / "truncated")
    with pytest.raises(ValueError, match="does not exist, expected the report"):
        compare(first, folder / "nothing")
    with pytest.raises(ValueError, match="resamples is 1, expected at least 2"):
        compare(first, second, resamples=1)


def _kernel(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the unbiased squared distance of pairs under (x y / d + 1)^3, term by term."""

    def k(x: torch.Tensor, y: torch.Tensor) -> float:
        return float(((x.double() @ y.double()) / len(x) + 1) ** 3)

    places = [(i, j) for i in range(len(a)) for j in range(len(a)) if i != j]
    terms = [k(a[i], a[j]) + k(b[i], b[j]) - k(a[i], b[j]) - k(a[j], b[i]) for i, j in places]
    return sum(terms) / len(terms)


def test_no_resamples_means_no_intervals(folder: Path, tmp_path: Path) -> None:
    plain = settings(folder, "first", prefixes=False, out=str(tmp_path / "out"), distances=DistanceConfig(resamples=0))
    report = evaluate_reconstructions(plain)
    assert report is not None
    assert report["intervals_95"] == {}
    text = (tmp_path / "out" / "report.md").read_text()
    assert "±" not in text
    assert "Intervals" not in text
    for value in (1, -1):
        with pytest.raises(ValueError, match=rf"resamples is {value}, expected 0 \(no intervals\) or at least 2"):
            DistanceConfig(resamples=value)


def test_continuous_tokens_get_their_diagnostics(folder: Path) -> None:
    report = evaluate_reconstructions(settings(folder, "continuous"))
    assert report is not None
    assert report["tokens"]["kind"] == "continuous"
    assert "spatial_autocorrelation" in report["tokens"]
    assert "## Latents" in (folder / "out" / "continuous" / "report.md").read_text()


def test_a_tokenizer_of_one_rate_says_so(folder: Path) -> None:
    tokenizer = KLAutoencoder(
        autoencoder={
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
            "block_out_channels": [8, 8],
            "layers_per_block": 1,
            "latent_channels": 3,
            "norm_num_groups": 4,
            "sample_size": 32,
        },
        image_size=32,
    )
    tokenizer.save_pretrained(folder / "kl")
    report = evaluate_reconstructions(settings(folder, "kl"))
    assert report is not None
    assert report["protocol"]["rate"] == "256 tokens, 768 numbers; the only rate of this tokenizer"
    assert [row["numbers"] for row in report["rate_distortion"]] == [768]
    assert "spatial_autocorrelation" in report["tokens"]
    assert not (folder / "out" / "kl" / "rate_distortion.png").exists()
    assert "## Rate and distortion" not in (folder / "out" / "kl" / "report.md").read_text()


def test_bad_input_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    def refuse(match: str, **changes: Any) -> None:
        changed = dataclasses.replace(settings(folder, "first", out=str(tmp_path / "out")), **changes)
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            evaluate_reconstructions(changed)
        assert not (tmp_path / "out" / "parts").exists()

    refuse("LPIPS: the weights of the alex backbone", lpips="alex", lpips_folder=str(tmp_path))
    refuse("the evaluation holds 9 images", num_images=9)
    refuse("num_images is 400, expected 0", num_images=400)
    refuse("set data.size to 32", data=dataclasses.replace(RfidSettings().data, size=16))
    refuse("neither model_index.json nor config.json", tokenizer=str(tmp_path))
