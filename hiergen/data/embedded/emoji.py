"""The embedded set in color: emoji of two styles, 32 pixels high, by Unicode's groups.

The drawings are Google's (noto, Apache-2.0) and Microsoft's (fluent-flat, MIT); `LICENSES.txt` beside this file has the notices.
"""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F

from hiergen.data.images.archives import NpzPictures
from hiergen.data.images.in_memory import ImageSet
from hiergen.data.images.on_disk import PictureSet, SplitPictures

FILE = Path(__file__).parent / "emoji_32.npz"
#: One emoji of so many is held out, in both styles.
HOLD_OUT = 10
#: The classes: groups of emoji.
EMOJI_GROUPS = (
    "Activities",
    "Animals & Nature",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)


def load_emoji(split: str, *, size: int = 32) -> ImageSet:
    """Return the train or test emoji as RGB images on white in [-1, 1], with their groups as classes.

    Args:
        split: "train" or "test"; by the emoji's name, so that no emoji is on both sides in different styles.
        size: Height and width in pixels; other than 32 they are resized bicubically.

    Raises:
        ValueError: If `split` is unknown.
    """
    found = PictureSet(SplitPictures(NpzPictures(FILE), split=split, hold_out=HOLD_OUT, by="name"), size=32).load()
    images = found.images
    if size != 32:
        images = F.interpolate(images, size=(size, size), mode="bicubic", align_corners=False, antialias=True)
    return ImageSet(images.clamp(-1, 1), found.labels, EMOJI_GROUPS)
