"""`hiergen reconstruct`: encode and decode images, level by level, and look."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from hiergen.checked import Checked
from hiergen.cli import QUICKSTART, check_exists, check_model, describe, open_model
from hiergen.config import parse
from hiergen.telling import counted, say, say_next

if TYPE_CHECKING:
    from torch import Tensor

#: Number of letters of the name of a class that fit above a picture.
MAX_NAME = 10


@dataclasses.dataclass(frozen=True)
class ReconstructSettings(Checked):
    """Encode and decode images, level by level.

    Attributes:
        tokenizer: Folder or Hub id of the tokenizer, or of a pipeline that has one.
        images: Images to reconstruct: "digits", a picture, or a folder of pictures, of which all classes are shown.
        out: PNG file for the inputs and their reconstructions from each prefix of levels.
        count: Largest number of images to show.
        whole: Keep one picture as large as it is, and take it apart in overlapping windows of the tokenizer's size; False takes the
            central square, scaled to that size.
        device: Device to run on; "auto" is a GPU where there is one.
    """

    tokenizer: str = f"{QUICKSTART}/tokenizer"
    images: str = "digits"
    out: str = "reconstruction.png"
    count: int = 10
    whole: bool = False
    device: str = "auto"


def main(args: list[str]) -> None:
    settings = parse(ReconstructSettings(), args, prog="hiergen reconstruct")
    if settings.count < 1:
        raise ValueError(f"count is {settings.count}, expected at least 1")
    check_model("--tokenizer", settings.tokenizer)
    if settings.images != "digits":
        check_exists("--images", settings.images, "'digits', a picture, or a folder of pictures")
    if settings.whole and not Path(settings.images).is_file():
        raise ValueError(f"whole is set and images is {settings.images!r}, expected one picture")
    from hiergen.data.images.windows import Windows
    from hiergen.figures import save_image_grid
    from hiergen.metrics.pixel import psnr
    from hiergen.pipelines.prefixes import rebuild_prefixes

    tokenizer = open_model(settings.tokenizer, settings.device, part="tokenizer")
    size = tokenizer.config.get("image_size")
    if size is None:
        raise ValueError(f"{settings.tokenizer!r} holds a {type(tokenizer).__name__}, which encodes no images")
    batch, names = _read(settings, size)
    height, width = batch.shape[-2:]
    say(
        f"reconstruct: {counted(len(batch), 'image')} of {width}x{height} from {settings.images}; {describe(tokenizer)}"
    )
    prefixes = rebuild_prefixes(
        tokenizer, batch, windows=Windows(size=size, overlap=size // 4) if settings.whole else None
    )
    rows, labels = [batch], ["input"]
    for number, tokens, rebuilt in zip(prefixes.counts, prefixes.tokens, prefixes.images, strict=True):
        ratio = float(psnr(rebuilt, batch).mean())
        rows.append(rebuilt)
        labels.append(f"{counted(tokens, 'token')}\n{ratio:.1f} dB")
        unit = counted(number, prefixes.unit.removesuffix("s"))
        print(f"{unit}, {counted(tokens, 'token')}: PSNR {ratio:.2f} dB over {counted(len(batch), 'image')}")
    columns = [name[:MAX_NAME] for name in names] if any(names) else None
    save_image_grid(
        settings.out,
        rows,
        row_labels=labels,
        column_labels=columns,
        scale=max(0.8, height / 100 if settings.whole else min(1.6, height / 100)),
    )
    print(f"wrote {settings.out}")
    if Path(settings.images).is_file():
        return
    # The extractors that need no file of weights.
    extractor = "digits" if settings.images == "digits" else "own" if len(set(names)) > 1 else ""
    options = f"--data.size {size}" + (f" --extractor.name {extractor} --lpips none" if extractor else "")
    say_next(f"hiergen evaluate rfid --tokenizer {settings.tokenizer} --data.source {settings.images} {options}")


def _read(settings: ReconstructSettings, size: int) -> tuple[Tensor, list[str]]:
    """Return the images `(b, 3, h, w)` in [-1, 1], and the name of each one's class."""
    import torch

    from hiergen.data.files.folders import class_names, class_order
    from hiergen.data.images.digits import load_digits
    from hiergen.data.images.files import list_images, read_image
    from hiergen.data.images.overview import spread_over_classes
    from hiergen.data.images.pixels import center_crop, to_tensor

    if settings.images == "digits":
        digits = load_digits("test", size=size)
        chosen = spread_over_classes(digits.labels.tolist(), settings.count)
        return digits.images[chosen], [digits.classes[label] for label in digits.labels[chosen].tolist()]
    source = Path(settings.images)
    paths = [source] if source.is_file() else list_images(source)
    names = class_names(paths, source.parent if source.is_file() else source)
    order = {name: number for number, name in enumerate(class_order(names))}
    # The first files of a folder of classes are all of one class.
    chosen = spread_over_classes([order[name] for name in names], settings.count)
    pictures = [read_image(paths[index]) for index in chosen]
    images = [to_tensor(picture if settings.whole else center_crop(picture, size)) for picture in pictures]
    return torch.stack(images), [names[index] for index in chosen]
