"""The images of a run as a config, and the dataset that it opens."""

from __future__ import annotations

from hiergen.data.config import EMBEDDED, DataConfig
from hiergen.data.embedded.emoji import load_emoji
from hiergen.data.images.archives import HubPictures, NpzPictures
from hiergen.data.images.digits import load_digits
from hiergen.data.images.idx import IdxPictures
from hiergen.data.images.in_memory import ImageSet, load_folder
from hiergen.data.images.on_disk import FolderPictures, PictureSet, PictureSource, SplitPictures
from hiergen.data.images.shards import ShardPictures
from hiergen.data.text.captions import Captions, describe_pictures
from hiergen.data.text.colors import main_color
from hiergen.data.videos.dataset import load_clips
from hiergen.data.videos.moving_digits import moving_digits
from hiergen.data.videos.moving_emoji import moving_emoji

#: Number of clips of the sources that move, of which every fourth frame is an image.
NUM_CLIPS = 512
#: Sources with a split of their own, and clips, whose frames would fall on both sides.
_HAVE_SPLITS = (*EMBEDDED, "clips", "hf", "idx")


def open_images(config: DataConfig, *, is_strict: bool = False) -> ImageSet | PictureSet:
    """Return the images of a config: an `ImageSet` in memory, or a `PictureSet` on disk.

    Args:
        config: Which images.
        is_strict: A picture or clip that cannot be read is an error, here or when it is asked for, and is never left out.

    Raises:
        ValueError: If the source does not exist or cannot be read, or what is asked for needs `in_memory=False`.
    """
    if config.size < 1:
        raise ValueError(f"size is {config.size}, expected at least 1")
    changes = config.crop != "center" or config.flip
    if config.in_memory and changes:
        raise ValueError("crop='random' and flip=True need the pictures themselves: set in_memory=False")
    kind, _, place = config.source.partition(":")
    if config.hold_out and kind in _HAVE_SPLITS:
        raise ValueError(f"hold_out is {config.hold_out}, but {config.source!r} is not divided that way: leave it at 0")
    if (config.image_column and kind != "hf") or (config.label_column and kind not in ("hf", "npz")):
        raise ValueError(
            f"image_column is {config.image_column!r} and label_column {config.label_column!r}, but {config.source!r} has no columns: "
            "leave them empty"
        )
    if kind in (*EMBEDDED, "clips") and not config.in_memory:
        raise ValueError("embedded pictures and frames of clips are only in memory: set in_memory=True")
    if kind in EMBEDDED:
        return load_embedded(kind, config.split, size=config.size)
    if kind == "clips":
        clips = load_clips(place, num_frames=1, size=config.size)
        if is_strict and clips.skipped:
            raise ValueError(
                f"{len(clips.skipped)} files of {place!r} are missing: {next(iter(clips.skipped.values()))}"
            )
        return clips.frames()
    if config.in_memory:
        return load_images(config, is_strict=is_strict)
    return PictureSet(
        open_pictures(config),
        size=config.size,
        crop=config.crop,
        flip=config.flip,
        min_crop=config.min_crop,
        is_strict=is_strict,
    )


def load_embedded(name: str, split: str, *, size: int = 32) -> ImageSet:
    """Return pictures that come with the package.

    Args:
        name: "digits", "emoji", or "moving-digits" and "moving-emoji" (frames of clips).
        split: "train" or "test".
        size: Height and width in pixels.
    """
    if name == "emoji":
        return load_emoji(split, size=size)
    if name == "moving-digits":
        return moving_digits(split, NUM_CLIPS, size=size).frames(every=4)
    if name == "moving-emoji":
        return moving_emoji(split, NUM_CLIPS, size=size).frames(every=4)
    return load_digits(split, size=size)


def load_images(config: DataConfig, *, is_strict: bool = False) -> ImageSet:
    """Return all images of a config in memory; see `open_images`."""
    if config.source.partition(":")[0] not in ("wds", "hf", "npz", "idx") and not config.hold_out:
        return load_folder(config.source, size=config.size)
    return PictureSet(open_pictures(config), size=config.size, is_strict=is_strict).load()


def open_pictures(config: DataConfig) -> PictureSource:
    """Return where the pictures of a config lie.

    Raises:
        ValueError: If it does not exist or cannot be read.
    """
    kind, _, place = config.source.partition(":")
    if kind == "hf":
        return HubPictures(place, split=config.split, image=config.image_column, label=config.label_column)
    if kind == "idx":
        return IdxPictures(place, split=config.split)
    source: PictureSource
    if kind == "wds":
        source = ShardPictures(place)
    elif kind == "npz":
        source = NpzPictures(place, label=config.label_column or "labels")
    else:
        source = FolderPictures(config.source)
    if not config.hold_out:
        return source
    return SplitPictures(source, split=config.split, hold_out=config.hold_out, by=config.hold_out_by)


def open_captions(config: DataConfig) -> tuple[Captions, ...]:
    """Return the captions of a config's images, in their order; none where the source has none and no templates are given.

    Raises:
        ValueError: If a picture of a folder with captions has none, or a template has an unknown field.
    """
    kind = config.source.partition(":")[0]
    if kind in (*EMBEDDED, "clips"):
        if config.captions:
            raise ValueError(f"captions are {config.captions}, but {config.source!r} has none: leave them out")
        return ()
    source = open_pictures(config)
    if config.captions:
        classes = [source.classes[label] for label in source.labels]
        return describe_pictures(
            source.names, classes, config.captions, texts=source.captions(), colors=_colors(config)
        )
    return source.captions()


def _colors(config: DataConfig) -> list[str]:
    """Return the main color of each image, where a caption asks for it."""
    if not any("{color}" in template for template in config.captions):
        return []
    pictures = PictureSet(open_pictures(config), size=config.size, is_strict=True)
    return [main_color(pictures.batch([(index, 0)], seed=0)["image"][0]) for index in range(len(pictures))]
