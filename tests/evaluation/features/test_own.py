"""The classifier of one's own classes: trained once, kept, the same for the same seed, and honest about how good it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from hiergen.evaluation.features import own
from hiergen.evaluation.features.own import OwnClassifier, learned_classes, own_classifier, resized
from hiergen.metrics.classifiers import FeatureNetwork

#: Two classes of 20 pictures, dark and bright, and one of 3.
LABELS = [0] * 20 + [1] * 20 + [2] * 3


def pictures() -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 60, (len(LABELS), 3, 24, 24), generator=rng)
    return (noise + 150 * torch.tensor(LABELS)[:, None, None, None].clamp(max=1)).to(torch.uint8)


def train(cache: Path, seen: list[int] | None = None, labels: Sequence[int] = LABELS, **changes: int) -> OwnClassifier:
    images = pictures()

    def read(indices: Sequence[int]) -> torch.Tensor:
        if seen is not None:
            seen.extend(indices)
        return images[list(indices)]

    settings = {"size": 16, "budget": 600, "seed": 0, **changes}
    return own_classifier(read, labels, (0, 1), identity={"data": "x"}, cache=cache, **settings)


def test_it_learns_is_kept_and_is_the_same_for_the_same_seed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    seen: list[int] = []
    first = train(tmp_path / "a", seen)
    # The class of three pictures is not looked at.
    assert sorted(seen) == list(range(40))
    assert (
        "extractor own: training a classifier on 40 pictures at 16x16, once for these data" in capsys.readouterr().err
    )
    assert (first.num_trained, first.num_held_out, first.accuracy, first.most_frequent) == (32, 8, 1.0, 0.5)
    assert first.doubt == []
    assert first.description == (
        "a 3-convolution classifier that sees pictures at 16 x 16, trained on 32 pictures; it names the class of 100.0% of 8 held-out pictures"
    )
    again = train(tmp_path / "a", seen)
    assert len(seen) == 40
    assert capsys.readouterr().err == ""
    torch.set_num_threads(2)
    elsewhere, other = train(tmp_path / "b"), train(tmp_path / "a", seed=1)
    weights = [found.network.state_dict()["trunk.0.weight"] for found in (first, again, elsewhere, other)]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])
    # Whatever it depends on has a classifier of its own.
    for labels, changes in (([*LABELS[:39], 0, *LABELS[40:]], {}), (LABELS, {"size": 24}), (LABELS, {"budget": 300})):
        train(tmp_path / "a", labels=labels, **changes)
    assert len(list((tmp_path / "a").glob("own-*/classifier.safetensors"))) == 5


def test_every_fifth_picture_of_a_class_is_held_out() -> None:
    held_out = own._held_out(torch.tensor([0] * 6 + [1] * 10))
    assert held_out.nonzero().flatten().tolist() == [4, 10, 15]


def test_large_data_are_read_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "MAX_PICTURES", 20)
    seen: list[int] = []
    train(tmp_path, seen)
    assert sorted(seen) == list(range(0, 40, 2))


def test_one_that_guesses_says_so() -> None:
    found = OwnClassifier(FeatureNetwork(2), 16, 80, 20, accuracy=0.6, most_frequent=0.5)
    assert len(found.doubt) == 1
    assert found.doubt[0].startswith(
        "the classifier of extractor 'own' names the class of 60% of the held-out pictures, and 50% are of the most frequent class"
    )
    assert dataclasses.replace(found, accuracy=0.95).doubt == []


@pytest.mark.parametrize(
    ("labels", "classes", "said"),
    [
        ([0] * 30, ("",), "'mine' has 30 pictures of 1 class."),
        ([0] * 30 + [1] * 9, ("cats", "dogs"), r"'mine' has 39 pictures of 2 classes \(cats 30, dogs 9\)\."),
    ],
)
def test_too_few_classes_are_refused(labels: list[int], classes: tuple[str, ...], said: str) -> None:
    message = rf"needs at least 2 with at least 10 pictures each; {said} Without classes there are --extractor.name inception and dinov2-b"
    with pytest.raises(ValueError, match=message):
        learned_classes(labels, classes, "mine")
    assert learned_classes([0] * 10 + [2] * 10 + [1] * 9, ("a", "b", "c"), "mine") == (0, 2)


def test_pictures_are_resized_only_where_they_must_be() -> None:
    images = pictures()
    assert resized(images, 24) is images
    small = resized(images, 12)
    assert (small.shape[1:], small.dtype) == ((3, 12, 12), torch.uint8)
    means = [x.float().mean(dim=(1, 2, 3)) for x in (small, images)]
    assert (means[0] - means[1]).abs().max() < 2
