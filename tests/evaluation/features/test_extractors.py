"""Feature extractors and LPIPS, opened by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hiergen.evaluation.features.extractors import inception_or_trained, open_lpips, trained_extractor
from hiergen.pretrained.perceptual import LPIPS


@pytest.mark.usefixtures("unchecked")
def test_images_too_small_for_lpips_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LPIPS, "from_files", lambda network, folder: LPIPS(network))
    assert open_lpips("alex", None, 32, torch.device("cpu")) is not None
    with pytest.raises(
        ValueError, match=r"LPIPS on 'alex' cannot look at 24 x 24 pixels .* --lpips none leaves it out"
    ):
        open_lpips("alex", None, 24, torch.device("cpu"))


def test_a_trained_extractor_is_kept_and_inception_is_taken_where_its_weights_are_named(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 32, 32), generator=rng, dtype=torch.uint8)
    labels = torch.arange(12) % 2
    path = tmp_path / "mine-cnn.safetensors"
    first = trained_extractor(path, images, labels, of="noise", epochs=1)
    assert (first.name, first.description) == ("mine-cnn", "32 features of a classifier of noise")
    before = path.read_bytes()
    # It is read back, not trained anew on what is handed in now.
    second = inception_or_trained("", path, images.flip(0), labels, of="noise")
    assert path.read_bytes() == before
    assert torch.equal(first(images)["pool"], second(images)["pool"])
    with pytest.raises(FileNotFoundError, match=r"the weights of extractor 'inception' are not at 'absent\.pth'"):
        inception_or_trained("absent.pth", path, images, labels, of="noise")
