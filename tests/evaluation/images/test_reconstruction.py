from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hiergen.__main__ import main
from hiergen.data.images.digits import load_digits
from hiergen.data.images.pixels import to_uint8
from hiergen.evaluation.comparison import compare, intervals
from hiergen.evaluation.features.distances import DistanceConfig, interval_rule, kernel_name, score_name
from hiergen.evaluation.features.extractors import ExtractorConfig, Inception, open_lpips
from hiergen.evaluation.images.reconstruction import RfidSettings, evaluate_reconstructions
from hiergen.evaluation.images.scores import describe_tokens
from hiergen.evaluation.protocol import PassConfig, check_finite, quantize
from hiergen.evaluation.report import publish, render
from hiergen.metrics.fidelity import FeatureExtractor, compare_image_sets
from hiergen.metrics.pixel import psnr
from hiergen.pipelines.prefixes import rebuild_prefixes
from hiergen.pretrained.perceptual import LPIPS
from hiergen.pyramid import TokenPyramid
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


def test_a_metric_that_is_not_finite_has_no_difference(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The PSNR of equal images is infinite, which JSON cannot hold: null in the report, and no comparison."""
    for name, values in (("first", torch.linspace(10, 12, 20)), ("second", torch.full((20,), torch.inf))):
        (tmp_path / name).mkdir()
        report = {
            "kind": "rfid",
            "what": "a test",
            "metrics": {"psnr": float(values.mean()), "ssim": 1.0, "absent": 0.5},
            "intervals_95": {"absent": 0.1},
            "settings": {"distances": {"resamples": 10}},
            "seed": 0,
            "environment": {},
            "wall_time_s": 1,
        }
        rows = {"psnr": values, "ssim": torch.full((20,), torch.nan)}
        publish(tmp_path / name, report, values=rows)
    text = (tmp_path / "second" / "report.md").read_text()
    assert "| psnr | not finite dB |  |" in text
    target = tmp_path / "result.json"
    assert (
        main(["evaluate", "compare", *(str(tmp_path / name) for name in ("first", "second")), "--out", str(target)])
        == 0
    )
    rows = json.loads(target.read_text())["metrics"]
    assert rows["psnr"] == {
        "first": pytest.approx(11),
        "second": None,
        "difference": None,
        "half_width": None,
        "is_clear": False,
        "interval": "resampled",
    }
    # No value of any item is known: no interval, whatever the report says.
    assert rows["ssim"]["difference"] is None
    assert rows["absent"]["half_width"] == pytest.approx(0.1 * 2**0.5)
    assert "not finite" in capsys.readouterr().out


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


def test_intervals_cover_what_they_should() -> None:
    """The half-width of a mean is 1.96 standard errors."""
    values = {"psnr": torch.randn(400, generator=torch.Generator().manual_seed(0))}
    half = intervals(values, None, "", resamples=400, seed=0)["psnr"]
    assert half == pytest.approx(1.96 * float(values["psnr"].std()) / 20, rel=0.12)


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


@pytest.mark.usefixtures("unchecked")
def test_images_too_small_for_lpips_are_refused_before_any_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LPIPS, "from_files", lambda network, folder: LPIPS(network))
    assert open_lpips("alex", None, 32, torch.device("cpu")) is not None
    with pytest.raises(
        ValueError, match=r"LPIPS on 'alex' cannot look at 24 x 24 pixels .* --lpips none leaves it out"
    ):
        open_lpips("alex", None, 24, torch.device("cpu"))


def test_diagnostics_of_tokens_that_hardly_differ() -> None:
    """Copies have no distance to a neighbor and equal ends no path: these are left out or not finite, and nothing fails."""
    tokenizer = create("hieratok-tiny").eval()
    spec = tokenizer.specs[0]
    same = TokenPyramid((torch.zeros(8, spec.num_tokens, spec.dim),), tokenizer.specs)
    found = describe_tokens(same, tokenizer, lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)))
    assert {"neighbor_spread", "spatial_autocorrelation"}.isdisjoint(found)
    assert np.isnan(found["interpolation_detour"])
    report = {"kind": "rfid", "what": "a test", "metrics": {}, "tokens": {**found, "interpolation_detour": None}}
    assert "interpolation detour: not finite" in render({**report, "environment": {}, "wall_time_s": 1})
    distinct = TokenPyramid((torch.randn(8, spec.num_tokens, spec.dim),), tokenizer.specs)
    assert {"neighbor_spread", "spatial_autocorrelation"} <= set(describe_tokens(distinct, tokenizer, None))


def test_a_straight_line_that_ends_below_zero_is_not_told() -> None:
    report = {
        "kind": "gfid",
        "what": "a test",
        "metrics": {},
        "environment": {},
        "wall_time_s": 1,
        "warnings": ["a", "b"],
    }
    for last, told in ((5.0, "| infinitely many (straight line in 1 / count) | 2.5 |"), (1.0, "these are too few for")):
        bias = [{"count": 10, "distance": 7.5}, {"count": 20, "distance": last}]
        text = render({**report, "bias": bias})
        assert told in text
    assert "> **Note**: a.\n\n> **Note**: b.\n" in text


def test_names_of_what_is_not_on_inceptions_features() -> None:
    names = {name: (kernel_name(name), score_name(name)) for name in ("FID", "FID-768", "FD-digits-cnn", "mine")}
    assert names == {
        "FID": ("KID", "IS"),
        "FID-768": ("KID-768", "IS-768"),
        "FD-digits-cnn": ("KD-digits-cnn", "IS-digits-cnn"),
        "mine": ("KD-mine", "IS-mine"),
    }
    rules = {name: interval_rule(name) for name in ("KID", "rKD-x", "IS-x", "psnr")}
    assert rules["KID"] is not None
    assert rules["KID"].endswith("blocks of both sets")
    assert rules["rKD-x"] is not None
    assert rules["rKD-x"].endswith("blocks of pairs")
    assert rules["psnr"] is None


def test_rounding_and_nan() -> None:
    bytes_ = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    values = bytes_.float() / 127.5 - 1
    assert torch.equal(quantize(values, "nearest"), bytes_)
    assert torch.equal(quantize(values, "truncate"), bytes_)
    between = (torch.full((1, 1, 1, 1), 100.7)) / 127.5 - 1
    assert (quantize(between).item(), quantize(between, "truncate").item()) == (101, 100)
    broken = torch.zeros(3, 1, 2, 2)
    broken[1, 0, 0, 1] = float("nan")
    with pytest.raises(ValueError, match="image 41 holds NaN or infinity"):
        check_finite(broken, 40, "image")


@torch.no_grad()
def test_inception_from_tensors_is_torch_fidelitys(tmp_path: Path) -> None:
    """Random weights through torch-fidelity's own loading; the truncated network agrees with the whole one on 768 and sFID's layer."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Random(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args: Any, **kwargs: Any) -> None:
            """Keep the random weights."""

    torch.save({}, tmp_path / "empty.pth")
    official = Random("inception-v3-compat", ["768", "2048", "logits_unbiased"], str(tmp_path / "empty.pth"))
    state = official.state_dict()
    for name in state:
        # As after folding: batch norm adds a bias and does nothing else.
        fill = {"running_var": 0.999, "running_mean": 0.0}.get(name.rsplit(".", 1)[1])
        if fill is not None:
            state[name].fill_(fill)
    images = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8)
    low, pool, logits = official(images)
    whole = Inception(state)(images)
    torch.testing.assert_close(whole["pool"], pool, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole["logits"], logits, rtol=1e-4, atol=1e-4)
    kept = {
        k: v for k, v in state.items() if not k.startswith(("Mixed_7", "fc")) and k.endswith(("conv.weight", "bn.bias"))
    }
    truncated = Inception(kept, is_truncated=True)(images)
    torch.testing.assert_close(truncated["pool"], low, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(truncated["spatial"], whole["spatial"], rtol=1e-4, atol=1e-4)
    assert truncated["spatial"].shape == (1, 7 * 17 * 17)
    assert "logits" not in truncated
    with pytest.raises(ValueError, match="not those of InceptionV3 of 2015-12-05"):
        Inception(kept)
    del kept["Mixed_6e.branch_pool.conv.weight"]
    with pytest.raises(
        ValueError, match=r"not those of InceptionV3 up to Mixed_6e: Mixed_6e\.branch_pool\.conv\.weight"
    ):
        Inception(kept, is_truncated=True)
    assert np.isfinite(truncated["pool"].numpy()).all()
