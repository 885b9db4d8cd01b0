"""`hiergen encode`: a dataset as a cache of token pyramids."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, cast

from hiergen.checked import Checked
from hiergen.config import parse
from hiergen.data.images.in_memory import ImageSet
from hiergen.data.images.on_disk import PictureSet, Views
from hiergen.data.sources import DataConfig, open_images

if TYPE_CHECKING:
    from hiergen.data.codes import CodeSet


@dataclasses.dataclass(frozen=True)
class EncodeSettings(Checked):
    """Write a dataset as a cache of token pyramids.

    Attributes:
        tokenizer: Folder or Hub id of the tokenizer, or of a pipeline that has one, or the name of a packaged model.
        out: Folder of the cache. A finished cache of the same tokenizer and data is left as it is.
        data: The images; `data.size` must be the image size of the tokenizer.
        shapes: Folder of shapes to encode instead, which `hiergen prepare-shapes` wrote (its train split is read), or "procedural".
        image_encoder: Folder of an `ImageEncoder`, whose features of the shapes' views are written too, and kept in
            `<out>-features` by the content of the view.
        variants: Number of encodings of each shape, from other surface points (and other views with an image encoder).
        videos: Folder of video files to encode instead. A tokenizer of images takes them frame by frame.
        num_frames: Number of frames of a clip, where the tokenizer is one of images.
        stride: Number of frames of a file from one frame of a clip to the next.
        views: What is encoded of each image: "center"; "flips", with its mirror image; or "ten_crop", the published ten crops.
        sample_seed: Seed with which the continuous tokens of images are drawn from their posterior; by default its mode is taken.
        batch_size: Images per pass.
        device: Device to run on; "auto" is a GPU where there is one.
    """

    tokenizer: str = "runs/restok_tiny/model"
    out: str = "codes"
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    shapes: str = ""
    image_encoder: str = ""
    variants: int = 1
    videos: str = ""
    num_frames: int = 16
    stride: int = 1
    views: Views = "center"
    sample_seed: int | None = None
    batch_size: int = 64
    device: str = "auto"


def main(args: list[str]) -> None:
    settings = parse(EncodeSettings(), args, prog="hiergen encode")
    from hiergen.environment import choose_device
    from hiergen.files import check_writable
    from hiergen.pipelines.loading import from_pretrained

    check_writable(settings.out)
    encode = _encode_shapes if settings.shapes else _encode_videos if settings.videos else _encode_images
    device = choose_device(settings.device)
    found = from_pretrained(settings.tokenizer)
    tokenizer = getattr(found, "components", {}).get("tokenizer", found)
    codes, what, more = encode(settings, tokenizer.eval().to(device))
    tokens = sum(spec.num_tokens for spec in codes.specs)
    print(f"{len(codes):,} {what} of {tokens} tokens in {settings.out}{more}")


def _encode_images(settings: EncodeSettings, tokenizer: Any) -> tuple[CodeSet, str, str]:
    from rich.progress import Progress

    from hiergen.pipelines.encoding import encode_images

    images = cast("ImageSet | PictureSet", open_images(settings.data))
    with Progress() as progress:
        bar = progress.add_task("encode", total=len(images))
        codes = encode_images(
            tokenizer,
            images,
            settings.out,
            views=settings.views,
            sample_seed=settings.sample_seed,
            batch_size=settings.batch_size,
            progress=lambda done: progress.update(bar, completed=done),
        )
    return codes, "pyramids", ""


def _encode_shapes(settings: EncodeSettings, tokenizer: Any) -> tuple[CodeSet, str, str]:
    from hiergen.data.shapes.dataset import open_shapes
    from hiergen.pipelines.loading import from_pretrained
    from hiergen.pipelines.shape_encoding import cloud_config, encode_shapes
    from hiergen.tokenizers.pyramid_vae.model import PyramidVAE

    if not isinstance(tokenizer, PyramidVAE):
        raise ValueError(f"{settings.tokenizer!r} holds a {type(tokenizer).__name__}, which encodes no shapes")
    encoder = from_pretrained(settings.image_encoder).eval().to(tokenizer.device) if settings.image_encoder else None
    codes = encode_shapes(
        tokenizer,
        open_shapes(cloud_config(tokenizer, settings.shapes, image=encoder is not None)),
        settings.out,
        num_variants=settings.variants,
        batch_size=settings.batch_size,
        image_encoder=encoder,
        feature_cache=f"{settings.out}-features" if encoder is not None else None,
    )
    return codes, "shapes", ""


def _encode_videos(settings: EncodeSettings, tokenizer: Any) -> tuple[CodeSet, str, str]:
    from hiergen.data.videos.dataset import load_clips
    from hiergen.pipelines.video_encoding import encode_videos
    from hiergen.tokenizers.hieratok.model import HieraTok
    from hiergen.tokenizers.videos.frames import FrameTokenizer
    from hiergen.tokenizers.videos.patch_components import PatchComponents

    if isinstance(tokenizer, HieraTok):
        tokenizer = FrameTokenizer.of(tokenizer, settings.num_frames)
    if isinstance(tokenizer, FrameTokenizer):
        frames, size = tokenizer.config["num_frames"], tokenizer.frame_size
    elif isinstance(tokenizer, PatchComponents):
        frames, size, _ = tokenizer.config["video_size"]
    else:
        raise ValueError(f"{settings.tokenizer!r} holds a {type(tokenizer).__name__}, which encodes no videos")
    videos = load_clips(settings.videos, num_frames=frames, size=size, stride=settings.stride)
    codes = encode_videos(tokenizer, videos, settings.out, batch_size=max(settings.batch_size // frames, 1))
    return codes, "clips", f"; {len(videos.skipped)} files skipped"
