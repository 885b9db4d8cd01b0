"""`hiergen reconstruct`: encode and decode images, level by level, and look."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hiergen.checked import Checked
from hiergen.config import parse


@dataclasses.dataclass(frozen=True)
class ReconstructSettings(Checked):
    """Encode and decode images, level by level.

    Attributes:
        tokenizer: Folder or Hub id of the tokenizer.
        images: Images to reconstruct: "digits", a picture, or a folder of pictures.
        out: PNG file for the inputs and their reconstructions from each prefix of levels.
        count: Largest number of images to show.
        device: Device to run on; "auto" is a GPU where there is one.
    """

    tokenizer: str = "quickstart/pipeline/tokenizer"
    images: str = "digits"
    out: str = "reconstruction.png"
    count: int = 10
    device: str = "auto"


def main(args: list[str]) -> None:
    settings = parse(ReconstructSettings(), args, prog="hiergen reconstruct")
    import torch

    from hiergen.data.images.digits import load_digits
    from hiergen.data.images.files import list_images, read_image
    from hiergen.data.images.pixels import center_crop, to_tensor
    from hiergen.environment import choose_device
    from hiergen.figures import save_image_grid
    from hiergen.metrics.pixel import psnr
    from hiergen.pipelines.encoding import decode_batches, encode_batches
    from hiergen.pipelines.loading import from_pretrained

    tokenizer = from_pretrained(settings.tokenizer).eval().to(choose_device(settings.device))
    size = tokenizer.config.image_size
    if settings.images == "digits":
        batch = load_digits("test", size=size).images[: settings.count]
    else:
        source = Path(settings.images)
        paths = [source] if source.is_file() else list_images(source)[: settings.count]
        batch = torch.stack([to_tensor(center_crop(read_image(path), size)) for path in paths])
    pyramid = encode_batches(tokenizer, batch)
    rows, labels = [batch], ["input"]
    for levels in tokenizer.decodable_levels:
        rebuilt = decode_batches(tokenizer, pyramid.prefix(levels))
        tokens = pyramid.prefix(levels).num_tokens
        ratio = float(psnr(rebuilt, batch).mean())
        rows.append(rebuilt)
        labels.append(f"{tokens} tokens\n{ratio:.1f} dB")
        print(f"{levels} levels, {tokens} tokens: PSNR {ratio:.2f} dB over {len(batch)} images")
    save_image_grid(settings.out, rows, row_labels=labels)
    print(f"wrote {settings.out}")
