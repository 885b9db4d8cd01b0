"""`hiergen encode`: a dataset as a cache of token pyramids."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from hiergen.checked import Checked, Count, Positive
from hiergen.cli import check_exists, check_model, describe, encoding_progress, open_model
from hiergen.config import parse
from hiergen.data.config import EMBEDDED, DataConfig
from hiergen.telling import counted, say, say_next

if TYPE_CHECKING:
    from hiergen.data.codes import CodeSet
    from hiergen.data.images.in_memory import ImageSet
    from hiergen.data.images.on_disk import PictureSet


@dataclasses.dataclass(frozen=True)
class EncodeSettings(Checked):
    """Write a dataset as a cache of token pyramids.

    Attributes:
        tokenizer: Folder or Hub id of the tokenizer, or of a pipeline that has one, or the name of a packaged model.
        out: Folder of the cache. A finished cache of the same tokenizer and data is left as it is.
        data: The images; `data.size` is the image size of the tokenizer, and need not be given.
        shapes: Folder of shapes to encode instead, which `hiergen prepare-shapes` wrote (its train split is read), or "procedural".
        image_encoder: Folder of an `ImageEncoder`, whose features of the shapes' views are written too, and kept
            in `<out>-features` by the content of the view.
        variants: Number of encodings of each shape, from other surface points (and other views with an image encoder).
        videos: Folder of video files to encode instead. A tokenizer of images takes them frame by frame.
        num_frames: Number of frames of a clip, where the tokenizer is one of images.
        stride: Number of frames of a file from one frame of a clip to the next.
        fps: Frames per second that each file of video is brought to by its time stamps first; by default its frames are taken as they are.
        views: What is encoded of each image: "center"; "flips", with its mirror image; or "ten_crop", the published ten crops.
        sample_seed: Seed with which the continuous tokens of images are drawn from their posterior; by default its mode is taken.
        batch_size: Images per pass.
        device: Device to run on; "auto" is a GPU where there is one.
        dtype: Number format of the tokenizer's weights, on which the codes depend; "auto" is bfloat16 where the device computes
            its products fast, else float32.
    """

    tokenizer: str = "runs/restok_tiny/model"
    out: str = "codes"
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    shapes: str = ""
    image_encoder: str = ""
    variants: Count = 1
    videos: str = ""
    num_frames: Count = 16
    stride: Count = 1
    fps: Positive | None = None
    views: Literal["center", "flips", "ten_crop"] = "center"
    sample_seed: int | None = None
    batch_size: Count = 64
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"


def main(args: list[str]) -> None:
    settings = parse(EncodeSettings(), args, prog="hiergen encode")
    check_model("--tokenizer", settings.tokenizer)
    if settings.image_encoder:
        check_model("--image-encoder", settings.image_encoder)
    if settings.videos:
        check_exists("--videos", settings.videos, "a folder of video files")
    elif settings.shapes not in ("", "procedural"):
        check_exists("--shapes", settings.shapes, "'procedural' or a folder that `hiergen prepare-shapes` wrote")
    elif ":" not in settings.data.source and settings.data.source not in EMBEDDED:
        check_exists(
            "--data.source",
            settings.data.source,
            f"{', '.join(map(repr, EMBEDDED))}, a folder of pictures, or KIND:PATH",
        )
    if settings.videos:
        from hiergen.data.videos.files import require_pyav

        require_pyav()
    from hiergen.data.codes import name_data
    from hiergen.files import check_writable
    from hiergen.training.reporting.facts import name_source

    check_writable(settings.out)
    encode = _encode_shapes if settings.shapes else _encode_videos if settings.videos else _encode_images
    tokenizer = open_model(settings.tokenizer, settings.device, part="tokenizer", dtype=settings.dtype)
    if encode is _encode_images:
        is_given = any(word.partition("=")[0] == "--data.size" for word in args)
        settings = _sized(settings, tokenizer, is_given=is_given)
    codes, what, more = encode(settings, tokenizer)
    source = f"clips:{settings.videos}" if settings.videos else settings.shapes or settings.data.source
    name_data(settings.out, name_source(source))
    tokens = counted(sum(spec.num_tokens for spec in codes.specs), "token")
    print(f"{counted(len(codes), what)} of {tokens} in {settings.out}{more}")
    discrete = codes.specs[0].is_discrete
    recipe = {"shape": "mar3d-tiny", "clip": "video-flow-clips-tiny"}.get(what, "har-tiny" if discrete else "flow-tiny")
    say_next(f"hiergen train {recipe} --task.codes {settings.out}")


def _tell(settings: EncodeSettings, found: str, classes: Sequence[str], tokenizer: Any) -> None:
    of = f" of {counted(len(classes), 'class')}" if classes else ""
    say(f"encode: {found}{of}; {describe(tokenizer)} -> {settings.out}")


def _sized(settings: EncodeSettings, tokenizer: Any, *, is_given: bool) -> EncodeSettings:
    """Return the settings with pictures of the tokenizer's size; another that was given is refused."""
    size, given = tokenizer.config.get("image_size"), settings.data.size
    if size is None or size == given:
        return settings
    if is_given:
        raise ValueError(
            f"data.size is {given}, but the tokenizer takes pictures of {size}x{size} pixels: leave it out"
        )
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, size=size))


def _encode_images(settings: EncodeSettings, tokenizer: Any) -> tuple[CodeSet, str, str]:
    from hiergen.data.sources import open_captions, open_images
    from hiergen.data.text.captions import write_captions
    from hiergen.pipelines.encoding import encode_images

    captions = open_captions(settings.data)
    # With captions, no picture may stand in for another one.
    images = cast("ImageSet | PictureSet", open_images(settings.data, is_strict=bool(captions)))
    _tell(settings, f"{counted(len(images), 'image')} in {settings.data.source}", images.classes, tokenizer)
    variants = {"center": 1, "flips": 2, "ten_crop": 10}[settings.views]
    with encoding_progress(tokenizer, len(images), "image", variants=variants) as progress:
        codes = encode_images(
            tokenizer,
            images,
            settings.out,
            views=settings.views,
            sample_seed=settings.sample_seed,
            batch_size=settings.batch_size,
            progress=progress,
        )
    if captions:
        write_captions(settings.out, captions)
    return codes, "pyramid", ""


def _encode_shapes(settings: EncodeSettings, tokenizer: Any) -> tuple[CodeSet, str, str]:
    from hiergen.data.shapes.dataset import open_shapes
    from hiergen.pipelines.shape_encoding import cloud_config, encode_shapes
    from hiergen.tokenizers.pyramid_vae.model import PyramidVAE

    if not isinstance(tokenizer, PyramidVAE):
        raise ValueError(f"{settings.tokenizer!r} holds a {type(tokenizer).__name__}, which encodes no shapes")
    encoder = open_model(settings.image_encoder, settings.device) if settings.image_encoder else None
    shapes = open_shapes(cloud_config(tokenizer, settings.shapes, image=encoder is not None))
    _tell(settings, f"{counted(len(shapes), 'shape')} in {settings.shapes}", shapes.classes, tokenizer)
    with encoding_progress(tokenizer, len(shapes), "shape", variants=settings.variants) as progress:
        codes = encode_shapes(
            tokenizer,
            shapes,
            settings.out,
            num_variants=settings.variants,
            batch_size=settings.batch_size,
            image_encoder=encoder,
            feature_cache=f"{settings.out}-features" if encoder is not None else None,
            progress=progress,
        )
    return codes, "shape", ""


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
    videos = load_clips(settings.videos, num_frames=frames, size=size, stride=settings.stride, fps=settings.fps)
    _tell(
        settings, f"{counted(len(videos), 'clip')} of {frames} frames in {settings.videos}", videos.classes, tokenizer
    )
    with encoding_progress(tokenizer, len(videos), "clip") as progress:
        batch_size = max(settings.batch_size // frames, 1)
        codes = encode_videos(tokenizer, videos, settings.out, batch_size=batch_size, progress=progress)
    skipped = counted(len(videos.skipped), "file")
    return codes, "clip", f"; {skipped} skipped"
