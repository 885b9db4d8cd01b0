"""The classifier of extractor "own": a small network trained on the classes of the data that an evaluation compares with.

It is kept under the fingerprint of data and settings in the folder where statistics of references are kept, so that every evaluation on the
same data measures with the same features.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hiergen.config import fingerprint
from hiergen.data.images.overview import class_counts, describe_classes, spread_over_classes
from hiergen.environment import one_thread
from hiergen.evaluation.parts import is_complete
from hiergen.evaluation.protocol import process_state
from hiergen.files import atomic_path
from hiergen.metrics.classifiers import FeatureNetwork, train_feature_network
from hiergen.telling import counted, say

#: Fewest pictures of a class that can be learned and tested, and the largest number of pictures that are read.
MIN_PER_CLASS, MAX_PICTURES = 10, 10_000
#: Every fifth picture of a class is held out.
TEST_EVERY = 5
#: Number of pictures that the network takes at once outside training.
_BATCH = 256


@dataclasses.dataclass(frozen=True)
class OwnClassifier:
    """A trained classifier and how good it is.

    Attributes:
        network: The network, on the CPU, in eval mode.
        size: Side in pixels at which it sees pictures.
        num_trained: Number of pictures that it was trained on.
        num_held_out: Number of pictures that it was tested on.
        accuracy: Share of the held-out pictures whose class it names.
        most_frequent: Share of the held-out pictures that are of their most frequent class.
    """

    network: FeatureNetwork
    size: int
    num_trained: int
    num_held_out: int
    accuracy: float
    most_frequent: float

    @property
    def description(self) -> str:
        """What a report says of it."""
        return (
            f"a 3-convolution classifier that sees pictures at {self.size} x {self.size}, trained on {counted(self.num_trained, 'picture')}; it names "
            f"the class of {self.accuracy:.1%} of {counted(self.num_held_out, 'held-out picture')}"
        )

    @property
    def doubt(self) -> list[str]:
        """A warning where it is not clearly better than always naming the most frequent class."""
        error = math.sqrt(self.most_frequent * (1 - self.most_frequent) / self.num_held_out)
        if self.accuracy > self.most_frequent + 2 * error:
            return []
        return [
            f"the classifier of extractor 'own' names the class of {self.accuracy:.0%} of the held-out pictures, and {self.most_frequent:.0%} are of "
            "the most frequent class: its features know nothing of the classes, so do not rely on them (more pictures or a larger "
            "--extractor.budget may help)"
        ]


def learned_classes(labels: Sequence[int], classes: Sequence[str], source: str) -> tuple[int, ...]:
    """Return the classes that have pictures enough to be learned and tested.

    Raises:
        ValueError: If these are fewer than two; says which extractors do without.
    """
    counts = class_counts(labels, len(classes))
    learned = tuple(number for number, count in enumerate(counts) if count >= MIN_PER_CLASS)
    if len(learned) < 2:
        raise ValueError(
            f"extractor 'own' learns to tell classes apart and needs at least 2 with at least {MIN_PER_CLASS} pictures each; {source!r} has "
            f"{counted(len(labels), 'picture')} of {describe_classes(labels, classes)}. Without classes there are "
            "--extractor.name inception and dinov2-b, which read weights from a file"
        )
    return learned


def own_classifier(
    read: Callable[[Sequence[int]], UInt8[Tensor, "b 3 h w"]],
    labels: Sequence[int],
    learned: Sequence[int],
    *,
    identity: dict[str, Any],
    size: int,
    budget: int,
    seed: int,
    cache: Path,
) -> OwnClassifier:
    """Return the classifier of some pictures: the one in the cache, or one that is trained and kept there.

    Of each class an even spread of pictures is read, every fifth of which is held out; at most 10,000 pictures in all.

    Args:
        read: Returns pictures by their indices.
        labels: Class of each picture, from 0 on.
        learned: Classes that are learned; pictures of others are left out.
        identity: JSON values that the pictures depend on.
        size: Side in pixels at which the network sees pictures.
        budget: Number of pictures seen in training, repeats counted.
        seed: Seed of weights, order and shifts.
        cache: Folder of the classifiers of data that were seen before.
    """
    known = {**identity, "labels": fingerprint(list(labels)), "size": size, "budget": budget, "seed": seed, "rule": 1}
    file = cache / f"own-{fingerprint(known)}" / "classifier.safetensors"
    state = process_state()
    if state.is_main_process and not is_complete(file):
        _train(read, labels, learned, size=size, budget=budget, seed=seed, file=file)
    state.wait_for_everyone()
    network = FeatureNetwork(max(labels) + 1)
    network.load_state_dict(load_file(file))
    with safe_open(file, framework="pt") as stored:
        about = json.loads(stored.metadata()["about"])
    return OwnClassifier(network.eval().requires_grad_(False), size, **about)


def resized(images: UInt8[Tensor, "b 3 h w"], size: int) -> UInt8[Tensor, "b 3 s s"]:
    """Return pictures at `size` x `size` pixels (bilinear, antialiased); as they are where they have that size."""
    if images.shape[-2:] == (size, size):
        return images
    small = F.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)


def _train(
    read: Callable[[Sequence[int]], UInt8[Tensor, "b 3 h w"]],
    labels: Sequence[int],
    learned: Sequence[int],
    *,
    size: int,
    budget: int,
    seed: int,
    file: Path,
) -> None:
    wanted = set(learned)
    known = [index for index, label in enumerate(labels) if label in wanted]
    chosen = [known[place] for place in spread_over_classes([labels[index] for index in known], MAX_PICTURES)]
    say(
        f"extractor own: training a classifier on {counted(len(chosen), 'picture')} at {size}x{size}, once for these data"
    )
    parts = [chosen[start : start + _BATCH] for start in range(0, len(chosen), _BATCH)]
    images = torch.cat([resized(read(part), size) for part in parts])
    targets = torch.tensor([labels[index] for index in chosen])
    is_test = _held_out(targets)
    epochs = math.ceil(budget / int((~is_test).sum()))
    # The same network on any number of threads.
    with one_thread():
        network = train_feature_network(
            images[~is_test], targets[~is_test], epochs=epochs, seed=seed, num_classes=max(labels) + 1, shift=size // 8
        )
        with torch.no_grad():
            found = torch.cat([network.scores(part).argmax(dim=1) for part in images[is_test].split(_BATCH)])
    expected = targets[is_test]
    about = {
        "num_trained": int((~is_test).sum()),
        "num_held_out": len(expected),
        "accuracy": float((found == expected).double().mean()),
        "most_frequent": int(expected.bincount().max()) / len(expected),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as temporary:
        save_file(network.state_dict(), temporary, metadata={"about": json.dumps(about)})


def _held_out(labels: Int64[Tensor, " n"]) -> Tensor:
    """Return which samples are held out: every fifth of each class."""
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        is_test[(labels == label).nonzero().flatten()[TEST_EVERY - 1 :: TEST_EVERY]] = True
    return is_test
