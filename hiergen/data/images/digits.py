"""The embedded image set: the handwritten digits that scikit-learn carries, brought to any size.

1,797 grey 8x8 images of 10 classes from the UCI "Optical Recognition of Handwritten Digits" test set (Alpaydin and Kaynak,
CC BY 4.0). Real images, no download: what quickstart, tests and demos run on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hiergen.data.images.in_memory import ImageSet

#: Every fifth image of each class is held out for testing.
TEST_EVERY = 5
NUM_CLASSES = 10


def load_digits(split: str, *, size: int = 32) -> ImageSet:
    """Return the train (1,442) or test (355) digits as RGB images in [-1, 1], bicubically enlarged from 8x8.

    Args:
        split: The split is fixed: image k of a class (in file order) is a test image iff k % 5 == 4.
        size: Height and width in pixels, at least 8.

    Raises:
        ValueError: If `split` is unknown or `size` is below 8.
    """
    from sklearn.datasets import load_digits as load

    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}, expected 'train' or 'test'")
    if size < 8:
        raise ValueError(f"size is {size}, expected at least 8, the original resolution")
    data = load()
    labels = torch.from_numpy(data.target).long()
    position = torch.zeros_like(labels)
    for label in range(NUM_CLASSES):
        chosen = labels == label
        position[chosen] = torch.arange(int(chosen.sum()))
    is_test = position % TEST_EVERY == TEST_EVERY - 1
    keep = is_test if split == "test" else ~is_test
    small = torch.from_numpy(data.images).float()[keep, None] / 16.0
    large = F.interpolate(small, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
    images = (large * 2 - 1).expand(-1, 3, -1, -1).contiguous()
    return ImageSet(images, labels[keep], tuple(str(label) for label in range(NUM_CLASSES)))
