"""Judges trained on the spot for image sets that no published network knows, such as the embedded digits.

Of different kinds, on purpose: a small convolutional network, whose features carry the Fréchet distance, and a support vector machine on
pixels, or a logistic regression on features of AlexNet, which judge whether a generated image shows the class that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hiergen.environment import require
from hiergen.files import atomic_path
from hiergen.pretrained.perceptual import LPIPS
from hiergen.seeding import derive_seed, make_rng


class Judge(nn.Module):
    """A network of which the features before its scores are used, standardized so that distances have a scale.

    Args:
        trunk: Maps prepared input to features `(b, 32)`.
    """

    FEATURES = 32

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.register_buffer("mean", torch.zeros(self.FEATURES))
        self.register_buffer("std", torch.ones(self.FEATURES))

    mean: Tensor
    std: Tensor

    @torch.no_grad()
    def standardize(self, features: Float[Tensor, "n d"]) -> None:
        """Make features as these have mean 0 and deviation 1; scores stay the same."""
        mean, std = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
        self.mean.copy_(mean)
        self.std.copy_(std)


J = TypeVar("J", bound=Judge)


def train_judge(
    make: Callable[[], J],
    loss: Callable[[J, Tensor], Tensor],
    count: int,
    *,
    name: str,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> J:
    """Return a trained network in eval mode; the same seed gives the same network on the same machine.

    Args:
        make: Makes the network.
        loss: Maps the network and the indices of some samples to their mean loss.
        count: Number of samples.
        name: Name of the random draws: weights draw from it, the order of samples from "NAME-order".
        epochs: Number of passes over the samples.
        batch_size: Number of samples per step.
        lr: Learning rate.
        seed: Seed of all draws.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, name))
        network = make()
        optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=1e-2)
        rng = make_rng(seed, f"{name}-order")
        for _ in range(epochs):
            for part in torch.randperm(count, generator=rng).split(batch_size):
                optimizer.zero_grad()
                loss(network, part).backward()
                optimizer.step()
    return network.eval().requires_grad_(False)


class FeatureNetwork(Judge):
    """Three convolutions and two linear layers; features are the 32 channels before the class scores."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(
            nn.Sequential(
                nn.Conv2d(3, 16, 3, stride=2, padding=1),
                nn.GELU(),
                nn.Conv2d(16, 32, 3, stride=2, padding=1),
                nn.GELU(),
                nn.Conv2d(32, 64, 3, stride=2, padding=1),
                nn.GELU(),
                nn.AdaptiveAvgPool2d(2),
                nn.Flatten(),
                nn.Linear(256, self.FEATURES),
            )
        )
        self.head = nn.Linear(self.FEATURES, num_classes)

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Return the features of uint8 images, of mean 0 and deviation 1 over the images that it was trained on."""
        return (self.trunk(images.float() / 127.5 - 1) - self.mean) / self.std

    def scores(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Return class scores of uint8 images."""
        return self.head(F.gelu(self.trunk(images.float() / 127.5 - 1)))


def train_feature_network(
    images: UInt8[Tensor, "n 3 h w"],
    labels: Int64[Tensor, " n"],
    *,
    epochs: int = 15,
    seed: int = 0,
    num_classes: int | None = None,
    shift: int = 0,
) -> FeatureNetwork:
    """Return a network trained to tell the classes apart; see `train_judge`.

    Args:
        images: Images to train on.
        labels: Classes of the images.
        epochs: Number of passes over the images.
        seed: Seed of all draws.
        num_classes: Number of classes; None for the largest label and one.
        shift: Largest random shift of a batch in pixels, up, down, left and right; 0 for none.
    """
    rng = make_rng(seed, "feature-network-shift")

    def moved(batch: Tensor) -> Tensor:
        if not shift:
            return batch
        down, right = torch.randint(2 * shift + 1, (2,), generator=rng).tolist()
        wide = F.pad(batch.float(), (shift,) * 4, mode="replicate").to(batch.dtype)
        return wide[:, :, down : down + batch.shape[2], right : right + batch.shape[3]]

    network = train_judge(
        lambda: FeatureNetwork(int(labels.max()) + 1 if num_classes is None else num_classes),
        lambda network, part: F.cross_entropy(network.scores(moved(images[part])), labels[part]),
        len(labels),
        name="feature-network",
        epochs=epochs,
        batch_size=64,
        lr=2e-3,
        seed=seed,
    )
    network.standardize(network(images))
    return network


def saved_feature_network(
    path: str | Path,
    images: UInt8[Tensor, "n 3 h w"],
    labels: Int64[Tensor, " n"],
    *,
    epochs: int = 15,
    seed: int = 0,
) -> FeatureNetwork:
    """Return the network in a safetensors file; where there is none, train it and write it, so that later runs compare with this one."""
    file = Path(path)
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as temporary:
            save_file(train_feature_network(images, labels, epochs=epochs, seed=seed).state_dict(), temporary)
    network = FeatureNetwork(int(labels.max()) + 1)
    network.load_state_dict(load_file(file))
    return network.eval().requires_grad_(False)


class LabelClassifier:
    """A support vector machine on 8x8 pixels: an opinion on class labels that shares nothing with our networks.

    Args:
        images: Images to learn from.
        labels: Classes of the images.
        in_color: Look at three channels; False looks at their mean.
    """

    def __init__(
        self, images: UInt8[Tensor, "n 3 h w"], labels: Int64[Tensor, " n"], *, in_color: bool = False
    ) -> None:
        from sklearn.svm import SVC

        self._in_color = in_color
        self._machine: Any = SVC(C=10.0, gamma="scale").fit(self._small(images), labels.numpy())

    def predict(self, images: UInt8[Tensor, "n 3 h w"]) -> Int64[Tensor, " n"]:
        """Return the class of each image."""
        return torch.from_numpy(np.asarray(self._machine.predict(self._small(images)), dtype=np.int64))

    def accuracy(self, images: UInt8[Tensor, "n 3 h w"], labels: Int64[Tensor, " n"]) -> float:
        """Return the share of images whose predicted class is the label."""
        return float((self.predict(images) == labels).double().mean())

    def _small(self, images: Tensor) -> np.ndarray:
        seen = images.float() if self._in_color else images.float().mean(dim=1, keepdim=True)
        return F.adaptive_avg_pool2d(seen / 255, 8).flatten(1).numpy()


class FeatureClassifier:
    """A logistic regression on the features of `stage_features`, for pictures whose classes 8x8 pixels do not tell.

    Args:
        features: Features of the images to learn from, `(n, c)`.
        labels: Class of each, a number or a name, `(n,)`.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray) -> None:
        linear = require("sklearn.linear_model", "images", "the judge")
        self._mean, self._std = features.mean(0), features.std(0) + 1e-6
        self._model: Any = linear.LogisticRegression(max_iter=300, C=0.02).fit(self._standard(features), labels)

    def likeliest(self, features: np.ndarray, count: int = 1) -> np.ndarray:
        """Return the likeliest classes of each image, the likeliest first, `(n, count)`."""
        order = np.argsort(-self._model.predict_proba(self._standard(features)), axis=1)
        likeliest: np.ndarray = self._model.classes_[order[:, :count]]
        return likeliest

    def _standard(self, features: np.ndarray) -> np.ndarray:
        return (features - self._mean) / self._std


@torch.no_grad()
def stage_features(network: LPIPS, images: Float[Tensor, "n 3 h w"], *, batch_size: int = 64) -> np.ndarray:
    """Return the mean and the maximum over places of each channel of every stage but the first, `(n, c)`, of images in [-1, 1]."""
    found = []
    for batch in images.split(batch_size):
        stages = network.stages(batch)[1:]
        found.append(torch.cat([torch.cat((x.mean((2, 3)), x.amax((2, 3))), dim=1) for x in stages], dim=1))
    return torch.cat(found).numpy()
