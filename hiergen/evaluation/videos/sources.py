"""Which clips are evaluated, as settings, and how they are made or read: all that can be wrong with them shows before any long work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hiergen.config import fingerprint
from hiergen.data.videos.dataset import VideoSet, from_uint8, load_clips
from hiergen.data.videos.decoding import require_pyav
from hiergen.data.videos.files import list_videos
from hiergen.data.videos.moving_digits import moving_digits
from hiergen.data.videos.moving_emoji import moving_emoji
from hiergen.evaluation.images.rate_distortion import describe_rate
from hiergen.evaluation.images.sampling import TokenSource, open_tokens
from hiergen.evaluation.settings import check_one_given
from hiergen.evaluation.videos.settings import EMBEDDED, ClipConfig, VideoSettings
from hiergen.metrics.fidelity import check_count
from hiergen.pipelines.encoding import tokenizer_fingerprint
from hiergen.pipelines.loading import from_pretrained
from hiergen.pipelines.prefixes import Prefix, list_prefixes
from hiergen.pyramid import TokenPyramid
from hiergen.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class ClipWork:
    """What is evaluated.

    Attributes:
        count: Number of clips.
        identity: JSON values that the clips depend on.
        read: Maps indices to clips `(b, 3, t, h, w)` in [-1, 1], on the device.
        own: Maps indices to the clips' own references, of the same shape; None where they have none.
        protocol: What a report says about them.
        items: Digits of the references of their own, in order; None where they have none.
        tokenizer: Rebuilds the references of their own; `read` is not asked then.
        prefixes: Prefixes of its tokens that clips are rebuilt from, ascending.
    """

    count: int
    identity: dict[str, Any]
    read: Callable[[range], Tensor]
    own: Callable[[range], Tensor] | None
    protocol: dict[str, str]
    items: str | None = None
    tokenizer: Tokenizer | None = None
    prefixes: tuple[Prefix, ...] = ()


def open_model(settings: VideoSettings, device: torch.device) -> TokenSource | Tokenizer | None:
    """Return what generates or rebuilds clips of the size that is asked for; None where they lie in a folder.

    Raises:
        ValueError: If it does not make such clips.
    """
    if settings.pipeline:
        tokens = open_tokens(settings, "ClassToVideoPipeline", device)
        _check_size(tokens.tokenizer, settings.clips, settings.pipeline)
        return tokens
    if settings.tokenizer:
        tokenizer = from_pretrained(settings.tokenizer)
        if not isinstance(tokenizer, Tokenizer):
            raise ValueError(
                f"{settings.tokenizer!r} holds a {type(tokenizer).__name__}, expected a tokenizer of clips"
            )
        torch.nn.Module.to(tokenizer.eval(), device)
        _check_size(tokenizer, settings.clips, settings.tokenizer)
        return tokenizer
    return None


def open_work(
    settings: VideoSettings, model: TokenSource | Tokenizer | None, reference: VideoSet, device: torch.device
) -> ClipWork:
    """Return what is evaluated.

    Args:
        settings: Which clips are evaluated.
        model: What `open_model` returned.
        reference: Clips that they are compared with.
        device: Device of the clips.

    Raises:
        ValueError: If clips of a folder cannot be read.
    """
    if isinstance(model, TokenSource):
        return _generated(settings, model)
    if model is not None:
        return _rebuilt(settings, model, reference, device)
    clips = open_clips(settings.videos, settings)
    own, pairing, items = _pairs(settings, reference, device)
    return ClipWork(
        len(clips),
        {"videos": clips.fingerprint},
        lambda keys: from_uint8(clips.videos[keys.start : keys.stop]).to(device),
        own,
        {"pairs": pairing},
        items,
    )


def _generated(settings: VideoSettings, tokens: TokenSource) -> ClipWork:
    protocol = {**settings.draw_protocol, "pairs": "none: generated clips have no reference of their own"}
    return ClipWork(
        settings.num_videos, tokens.identity, lambda keys: tokens.tokenizer.decode(tokens.draw(keys)), None, protocol
    )


def _rebuilt(settings: VideoSettings, tokenizer: Tokenizer, reference: VideoSet, device: torch.device) -> ClipWork:
    def own(keys: range) -> Tensor:
        return from_uint8(reference.videos[keys.start : keys.stop]).to(device)

    listed = list_prefixes(tokenizer)
    prefixes = tuple(listed if settings.prefixes else listed[-1:])
    protocol = {
        "pairs": "every clip with what it was rebuilt from",
        "rate": f"{describe_rate(listed)}, for {reference.videos[0].numel():,} numbers of a clip",
    }
    return ClipWork(
        len(reference),
        {"tokenizer": tokenizer_fingerprint(tokenizer), "prefixes": [prefix.count for prefix in prefixes]},
        own,
        own,
        protocol,
        reference.fingerprint,
        tokenizer,
        prefixes,
    )


@torch.no_grad()
def _check_size(tokenizer: Tokenizer, clips: ClipConfig, path: str) -> None:
    """Check by decoding one clip of zeros, which costs little beside what follows."""
    levels = tuple(
        torch.zeros(1, spec.num_tokens, dtype=torch.int64)
        if spec.is_discrete
        else torch.zeros(1, spec.num_tokens, spec.dim)
        for spec in tokenizer.specs
    )
    made: Any = tokenizer.decode(TokenPyramid(levels, tokenizer.specs).to(tokenizer.device))
    wanted = (3, clips.num_frames, clips.size, clips.size)
    shape = tuple(made.shape[1:]) if isinstance(made, Tensor) else ()
    if len(shape) != 4:
        raise ValueError(f"{path!r} holds a {type(tokenizer).__name__}, expected a tokenizer of clips")
    if shape != wanted:
        raise ValueError(
            f"{path!r} makes clips of shape {shape}, those asked for have {wanted}: set clips.num_frames and clips.size"
        )


def check_clips(settings: VideoSettings) -> None:
    """Check that there are clips to read and enough of them to make, without reading a file.

    Raises:
        ValueError: If not one of pipeline, videos and tokenizer is given, a folder is missing or holds no video file, or too few clips are
            asked for.
        ImportError: If the library that reads video files is not installed.
    """
    check_one_given(settings, "pipeline", "videos", "tokenizer")
    if settings.pipeline:
        check_count(settings.num_videos, "the evaluation", "clips")
    folders = [source for source in (settings.reference, settings.videos) if source and source not in EMBEDDED]
    if settings.reference in EMBEDDED:
        check_count(settings.num_reference, "the reference", "clips")
    for folder in folders:
        require_pyav()
        list_videos(folder)


def open_clips(source: str, settings: VideoSettings) -> VideoSet:
    """Return the clips of a folder, or the embedded ones.

    Raises:
        ValueError: If there are none, or a file cannot be read: an evaluation is of all of them.
    """
    cut = settings.clips
    if source == "moving-emoji":
        return moving_emoji("test", settings.num_reference, num_frames=cut.num_frames, size=cut.size)
    if source == "moving-digits":
        return moving_digits(
            "test",
            settings.num_reference,
            num_frames=cut.num_frames,
            size=cut.size,
            digit_size=cut.digit_size or None,
        )
    clips = load_clips(
        source, num_frames=cut.num_frames, size=cut.size, stride=cut.stride, clips_per_file=cut.clips_per_file
    )
    if clips.skipped:
        path, why = next(iter(clips.skipped.items()))
        raise ValueError(f"{len(clips.skipped)} files of {source!r} cannot be evaluated, first {path!r}: {why}")
    return clips


def _pairs(
    settings: VideoSettings, reference: VideoSet, device: torch.device
) -> tuple[Callable[[range], Tensor] | None, str, str | None]:
    """Return each clip's own reference by the names of the files, what a report says of it, and digits of these references."""
    if settings.reference in EMBEDDED or settings.clips.clips_per_file != 1:
        return None, "none: pairs are files of the same name, one clip each", None
    names = [
        [path.relative_to(folder).with_suffix("").as_posix() for path in list_videos(folder)]
        for folder in (settings.videos, settings.reference)
    ]
    places = {name: place for place, name in enumerate(names[1])}
    found = [name for name in names[0] if name in places]
    if len(found) < len(names[0]):
        return None, f"none: {len(found)} of {len(names[0])} files have a reference of the same name", None
    order = torch.tensor([places[name] for name in names[0]])
    return (
        lambda keys: from_uint8(reference.videos[order[keys.start : keys.stop]]).to(device),
        "files of the same name",
        fingerprint([reference.fingerprint, names[0]]),
    )
