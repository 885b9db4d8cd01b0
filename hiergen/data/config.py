"""Settings of the images that a run takes; `hiergen.data.sources` opens them."""

from __future__ import annotations

import dataclasses
from typing import Literal

from hiergen.checked import Checked

#: Pictures that come with the package, by name: those that move are frames of clips.
EMBEDDED = ("digits", "emoji", "moving-digits", "moving-emoji")


@dataclasses.dataclass(frozen=True)
class DataConfig(Checked):
    """Where images come from.

    Attributes:
        source: "digits" or "emoji" (embedded); "moving-digits" or "moving-emoji" (frames of the embedded clips); "clips:FOLDER" (frames of a folder of video files);
            the path of a folder of pictures, sub-folders being classes; "wds:PATTERN" (WebDataset
            shards); "hf:FOLDER" (a Hugging Face dataset on disk); "npz:FILE" (an archive of encoded images); or "idx:FOLDER" (the
            files of MNIST, or of another set in its form, such as Fashion-MNIST).
        split: Split of the embedded set, of a Hugging Face dataset or of MNIST's files; any other source is taken whole
            unless `hold_out` divides it.
        hold_out: For pictures without a split of their own (folders, shards, archives): one of `hold_out` is "test", the others
            are "train". 0 takes them whole.
        hold_out_by: "number" holds out pictures 0, `hold_out`, 2 `hold_out`, ...; "name", for archives with names, holds out by what
            stands behind the last slash of a name, so that what is the same thing in several styles is on one side.
        size: Height and width in pixels.
        in_memory: Decode everything once, at the start. False reads from disk when a batch asks, and is needed for what follows.
        crop: "center", or "random" for ADM's random crop.
        flip: Mirror every second image, at random.
        min_crop: Smallest part of the short side that a random crop keeps.
        image_column: Column of a Hugging Face dataset that holds the images; "" takes "image", or finds one and says which.
        label_column: Column of a Hugging Face dataset that holds the labels; "" takes "label", or finds one and says which. For an
            archive of encoded images, its arrays of numbers that make the class together, such as "labels+styles"; "" takes "labels".
        captions: Texts that describe a picture, with fields in braces: '{text}' (the first that the source has of it), '{name}' (words of its
            name), '{color}' (the main color of what is before the background, one of eleven terms), '{class}', and of a class such
            as "group/subgroup | attribute" also '{group}', '{subgroup}' and '{attribute}'. By default the texts that a folder has in the
            files `captions.jsonl`, `metadata.jsonl` or `metadata.csv`, and an archive in its array `texts`.
    """

    source: str = "digits"
    split: Literal["train", "test"] = "train"
    hold_out: int = 0
    hold_out_by: Literal["number", "name"] = "number"
    size: int = 32
    in_memory: bool = True
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    min_crop: float = 0.8
    image_column: str = ""
    label_column: str = ""
    captions: tuple[str, ...] = ()
