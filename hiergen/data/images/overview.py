"""What a set of pictures holds: a sentence about it, and a choice that shows all of its classes."""

from __future__ import annotations

from collections.abc import Sequence

from hiergen.data.dataset import Dataset
from hiergen.data.images.in_memory import ImageSet
from hiergen.data.images.on_disk import PictureSet
from hiergen.telling import counted

#: Number of pictures below which a model learns them by heart.
FEW_PICTURES = 100
#: Number of classes that are named, and number of pictures on disk whose sizes are looked at.
NAMED_CLASSES, MEASURED_PICTURES = 6, 200


def describe_images(dataset: Dataset, *, is_trained_on: bool = True) -> str:
    """Return what was found and what is done with it, e.g. "450 pictures of 3 classes (faces 200, motorbikes 150, airplanes 100)".

    Sizes of pictures on disk are those of an even spread of them. A last part warns where the pictures are so few that a model will
    learn them by heart.

    Args:
        dataset: Pictures in memory or on disk; of any other data, the number of samples is all that is said.
        is_trained_on: Whether a model is trained on them, and a warning has a place.
    """
    if not isinstance(dataset, ImageSet | PictureSet):
        return counted(len(dataset), "sample")
    found = f"{counted(len(dataset), 'picture')} of {describe_classes(image_labels(dataset), dataset.classes)}"
    few = f"; {counted(len(dataset), 'picture')}: a model will learn so few by heart"
    return f"{found}{_describe_sizes(dataset)}{few if is_trained_on and len(dataset) < FEW_PICTURES else ''}"


def image_labels(images: ImageSet | PictureSet) -> list[int]:
    """Return the class of each picture."""
    return images.labels.tolist() if isinstance(images, ImageSet) else images.labels


def describe_classes(labels: Sequence[int], classes: Sequence[str]) -> str:
    """Return the number of classes and, with how many pictures each has, the names of the first."""
    counts = class_counts(labels, len(classes))
    named = [f"{name} {count:,}" for name, count in zip(classes, counts, strict=True) if name][:NAMED_CLASSES]
    more = ", ..." if named and len(classes) > len(named) else ""
    return counted(len(classes), "class") + (f" ({', '.join(named)}{more})" if named else "")


def class_counts(labels: Sequence[int], num_classes: int) -> list[int]:
    """Return how many of the labels each class has."""
    counts = [0] * num_classes
    for label in labels:
        counts[label] += 1
    return counts


def spread_over_classes(labels: Sequence[int], count: int) -> list[int]:
    """Return the indices of so many samples, ascending, of which each class has as many as any other, as far as there are as many.

    Of the samples of a class it is an even spread. Of more classes than samples, an even spread of the classes has one sample each.

    Args:
        labels: Class of each sample.
        count: Number of samples to choose, at most; all of them where there are no more.
    """
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        by_class.setdefault(label, []).append(index)
    names = _even(sorted(by_class), count)
    quota = dict.fromkeys(names, 0)
    for _ in range(min(count, len(labels))):
        # The next of those that have the fewest so far and some left.
        quota[min((name for name in names if quota[name] < len(by_class[name])), key=lambda name: quota[name])] += 1
    return sorted(index for name in names for index in _even(by_class[name], quota[name]))


def _even(items: Sequence[int], count: int) -> list[int]:
    """Return an even spread of at most so many items, in their order."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def _describe_sizes(dataset: ImageSet | PictureSet) -> str:
    """Return the sizes of the pictures as they are stored and what is made of them; "" where nothing is known or done."""
    if isinstance(dataset, ImageSet):
        height, width = dataset.images.shape[-2:]
        sizes, whole, is_random, flips = set(dataset.sizes), True, False, False
    else:
        height = width = dataset.size
        sizes, whole = set(), len(dataset) <= MEASURED_PICTURES
        for index in _even(range(len(dataset)), MEASURED_PICTURES):
            try:
                sizes.add(dataset.source.stored_size(index))
            except ValueError:
                # A picture that cannot be read is named when it is its turn.
                continue
        is_random, flips = dataset.crop == "random", dataset.flip
    if not sizes or sizes == {(width, height)}:
        return f", {width}x{height} pixels" + (", mirrored at random" if flips else "")
    first, last = min(sizes, key=_area), max(sizes, key=_area)
    seen = f"{first[0]}x{first[1]}" + (f" to {last[0]}x{last[1]}" if last != first else "")
    done = [f"resized to {width}x{height}"]
    if is_random or any(one[0] != one[1] for one in sizes):
        done.append(f"cropped {'at random' if is_random else 'to the center'}")
    done += ["mirrored at random"] if flips else []
    told = f"{', '.join(done[:-1])} and {done[-1]}" if len(done) > 1 else done[0]
    return f", {seen} pixels{'' if whole else f' (of {MEASURED_PICTURES} looked at)'}, {told}"


def _area(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] * size[1], size[0]
