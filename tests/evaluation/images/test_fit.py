"""Extractors that do not fit pictures say so, and a classifier is asked whether samples show what was asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hiergen.__main__ import main
from hiergen.data.config import DataConfig
from hiergen.data.images.digits import load_digits
from hiergen.data.images.pixels import to_uint8
from hiergen.evaluation.features.extractors import Extractor, Training
from hiergen.evaluation.features.video_extractors import VideoExtractorConfig, check_video_extractor
from hiergen.evaluation.images.fit import agreement, check_image_extractor, mismatches
from hiergen.evaluation.images.generation import evaluate_generations
from hiergen.evaluation.images.reconstruction import evaluate_reconstructions
from hiergen.evaluation.runner import tell
from hiergen.evaluation.settings import DistanceConfig, ExtractorConfig, GfidSettings, PassConfig, RfidSettings
from hiergen.pretrained.packaged import PACKAGED

DIGITS = Training("scikit-learn's digits", 32, False, True, tuple("0123456789"), 0.97, 355)
OWN = Training("'mine'", 32, True, False, ("cats", None, "dogs"), 0.75, 8)


def images(side: int, *, is_gray: bool = True) -> torch.Tensor:
    found = to_uint8(load_digits("test", size=max(side, 8)).images[:4])
    return found if is_gray else found * torch.tensor([1, 0, 0], dtype=torch.uint8)[:, None, None]


@pytest.mark.parametrize(
    ("training", "side", "is_gray", "classes", "said"),
    [
        (DIGITS, 32, False, DIGITS.classes, "they are in color, it knows gray ones alone."),
        (DIGITS, 64, True, DIGITS.classes, "they have 64 x 64 pixels, it was trained at 32 x 32."),
        (DIGITS, 16, True, DIGITS.classes, "they have 16 x 16 pixels, it was trained at 32 x 32."),
        (DIGITS, 32, True, ("cats", "dogs"), "their classes (cats, dogs) are not its own (0, 1, 2, ...)."),
        (DIGITS, 32, True, ("",), "their classes (none) are not its own (0, 1, 2, ...)."),
        (OWN, 256, False, ("cats", "dogs"), "they have 256 x 256 pixels, it looks at them at 32 x 32."),
    ],
)
def test_what_does_not_fit_is_named(training, side, is_gray, classes, said) -> None:
    (warning,) = mismatches("digits", training, images(side, is_gray=is_gray), classes)
    assert warning.startswith(
        f"extractor 'digits' was trained on {training.what} and does not fit these pictures: {said}"
    )
    advice = "--extractor.size 128 shows it more" if training is OWN else "--extractor.name own learns classes of yours"
    assert advice in warning


def test_what_fits_raises_no_doubt() -> None:
    assert mismatches("digits", DIGITS, images(32), DIGITS.classes) == []
    assert mismatches("digits", DIGITS, images(28), DIGITS.classes[::-1]) == []
    assert mismatches("own", OWN, images(64, is_gray=False), ("cats", "hens", "dogs")) == []
    several = mismatches("digits", DIGITS, images(64, is_gray=False), ("cats",))
    assert len(several) == 1
    assert several[0].count("; ") == 2


def test_agreement_is_counted_where_the_classifier_knows_the_class() -> None:
    extractor = Extractor("own", "", lambda x: x, "FD-own-cnn", 32, "x", training=OWN)
    # It sees cats, cats, dogs, dogs, dogs.
    logits = torch.tensor([[9, 0, 0], [9, 0, 1], [0, 0, 9], [0, 0, 9], [0, 0, 9]]).float()
    found = agreement(logits, [0, 1, 1, 2, 1], ("cats", "dogs", "hens"), extractor)
    assert found is not None
    # The fourth is a hen, of which it knows nothing.
    assert (found.share, found.count) == (0.75, 4)
    assert found.half_width == pytest.approx(1.96 * (0.75 * 0.25 / 4) ** 0.5, rel=1e-3)
    assert found.sentence == (
        "The classifier of extractor 'own' agrees with the class that was asked for in 75.0% of 4 samples (by chance: 33.3%); on 8 held-out real "
        "pictures it is right in 75.0%"
    )
    assert agreement(logits, [0] * 5, ("hens",), extractor) is None
    assert agreement(logits, [0] * 5, ("cats",), dataclasses.replace(extractor, training=None)) is None


def test_own_is_refused_where_there_are_no_classes(tmp_path: Path) -> None:
    for k in range(12):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{k}.png")
    own = ExtractorConfig("own")
    with pytest.raises(ValueError, match=r"extractor 'own' learns to tell classes apart .* has 12 pictures of 1 class"):
        check_image_extractor(own, DataConfig(source=str(tmp_path)))
    refused = "extractor 'own' is trained on the classes of real pictures, .* take another extractor"
    with pytest.raises(ValueError, match=refused):
        check_image_extractor(own, None)
    with pytest.raises(ValueError, match=refused):
        check_video_extractor(VideoExtractorConfig("frames-own"))
    with pytest.raises(ValueError, match=r"extractor 'own' is trained on the spot, expected no weights, got 'a\.pth'"):
        check_image_extractor(ExtractorConfig("own", "a.pth"), DataConfig())
    for name, value in (("size", 64), ("budget", 5), ("seed", 1)):
        message = f"extractor 'digits' is not trained on your data, expected no {name}: that is for 'own'"
        with pytest.raises(ValueError, match=message):
            check_image_extractor(ExtractorConfig("digits", **{name: value}), DataConfig())
    with pytest.raises(ValueError, match="size is 4, expected at least 8"):
        ExtractorConfig("own", size=4)


def settings(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return {
        "out": str(tmp_path / "out"),
        "cache": str(tmp_path / "cache"),
        "extractor": ExtractorConfig("own", budget=500),
        "distances": DistanceConfig(resamples=0),
        "passes": PassConfig(batch_size=16, device="cpu"),
        **changes,
    }


def test_a_generator_is_judged_by_a_classifier_of_the_data(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    chosen = GfidSettings(
        pipeline=str(PACKAGED / "digits-1d"), num_images=20, data=DataConfig(split="test"), **settings(tmp_path)
    )
    report = evaluate_generations(chosen)
    assert report is not None
    assert report["agreement"].startswith(
        "The classifier of extractor 'own' agrees with the class that was asked for in "
    )
    assert "of 20 samples (by chance: 10.0%); on 69 held-out real pictures it is right in " in report["agreement"]
    assert f"it names the class of {report['agreement'][-5:]}" in report["extractor"]["description"]
    assert {"agreement", "gFD-own-cnn", "precision"} <= set(report["metrics"])
    text = (tmp_path / "out" / "report.md").read_text()
    assert report["agreement"] in text
    assert "| agreement (own classifier) |" in text
    assert "| precision (own features) |" in text
    capsys.readouterr()
    tell(report)
    printed = capsys.readouterr()
    assert printed.out.startswith(report["agreement"])
    assert "recall (own features)" in printed.out
    assert "warning: the set holds 20 images for 32 channels" in printed.err
    # The trained classifier is read back.
    evaluate_generations(dataclasses.replace(chosen, out=str(tmp_path / "second")))
    assert "training a classifier" not in capsys.readouterr().err


def test_photographs_under_the_extractor_of_digits(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """In the console before the work, and in the report; a sorted folder of which the first are taken is doubted, too."""
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(12):
            Image.new("RGB", (40, 40), (20 * k, 90, 0)).save(tmp_path / "photos" / name / f"{k:02d}.png")
    words = f"evaluate rfid --tokenizer digits-1d --data.source {tmp_path / 'photos'} --extractor.name digits --lpips none --num-images 12"
    assert main([*words.split(), "--distances.resamples", "0", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().err
    misfit = (
        "extractor 'digits' was trained on scikit-learn's digits and does not fit these pictures: they are in color"
    )
    part = "the first 12 images of 24 are of 1 class of 2: they stand for no others (--num-images 0 takes all)"
    data = f"data: 24 pictures of 2 classes (cats 12, dogs 12), 40x40 pixels, resized to 32x32, from {tmp_path / 'photos'}\n"
    before = printed.partition("evaluate rfid: 12 items")[0]
    assert data in before
    text = (tmp_path / "out" / "report.md").read_text()
    for warning in (misfit, part):
        assert f"warning: {warning}" in before
        assert f"> **Note**: {warning}" in text


def test_examples_are_of_all_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted by class, the first ten files would be of one."""
    shown: dict[str, torch.Tensor] = {}
    module = "hiergen.evaluation.runner.publish"
    monkeypatch.setattr(module, lambda folder, report, *, pictures, **rest: shown.update(pictures) or report)
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    for name, color in zip("abc", colors, strict=True):
        (tmp_path / name).mkdir()
        for k in range(14):
            Image.new("RGB", (32, 32), color).save(tmp_path / name / f"{k:02d}.png")
    chosen = RfidSettings(
        tokenizer=str(PACKAGED / "digits-1d"),
        data=DataConfig(source=str(tmp_path)),
        lpips="none",
        **{**settings(tmp_path / "run"), "extractor": ExtractorConfig("mean-color")},
    )
    evaluate_reconstructions(chosen)
    counts = [int((shown["input"][:, k].amax(dim=(1, 2)) > 200).sum()) for k in range(3)]
    assert counts == [4, 3, 3]
    assert {len(rows) for rows in shown.values()} == {10}
