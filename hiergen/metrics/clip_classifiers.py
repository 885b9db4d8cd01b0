"""Judges of the embedded clips, trained on the spot: a network over whole clips for distances, a machine on single frames for labels.

Letters: `n b` clips, `t h w` a clip, `s` side of a crop, `d` features.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from hiergen.data.videos.dataset import MovingThings
from hiergen.data.videos.moving_digits import moving_digits
from hiergen.data.videos.moving_emoji import moving_emoji
from hiergen.metrics.classifiers import Judge, LabelClassifier, train_judge
from hiergen.metrics.video import VideoExtractor

#: Number of directions of `MovingThings`.
_NUM_DIRECTIONS = 4
#: Number of clips that the extractor is trained on, each of them seen three times.
EXTRACTOR_CLIPS = 2000


class ClipNetwork(Judge):
    """Three convolutions over space and time and a linear layer; features are the 32 channels before the scores.

    It is trained to tell what moves and where it starts to, so that features carry appearance and motion.
    """

    def __init__(self, num_classes: int) -> None:
        layers: list[nn.Module] = [nn.Conv3d(1, 8, (5, 3, 3), stride=(4, 2, 2), padding=(2, 1, 1)), nn.GELU()]
        for channels, wider in ((8, 24), (24, 64)):
            layers += [nn.Conv3d(channels, wider, 3, stride=(1, 2, 2), padding=1), nn.GELU()]
        # The place of a thing is lost, the order of the four quarters of a clip is not.
        super().__init__(
            nn.Sequential(*layers, nn.AdaptiveMaxPool3d((4, 1, 1)), nn.Flatten(), nn.Linear(256, self.FEATURES))
        )
        self.heads = nn.ModuleList([nn.Linear(self.FEATURES, count) for count in (num_classes, _NUM_DIRECTIONS)])

    def forward(self, videos: UInt8[Tensor, "b 3 t h w"]) -> Float[Tensor, "b d"]:
        """Return the features of uint8 clips, of mean 0 and deviation 1 over the clips that it was trained on."""
        return (self.trunk(_ink(videos)) - self.mean) / self.std

    def scores(self, videos: UInt8[Tensor, "b 3 t h w"]) -> tuple[Tensor, Tensor]:
        """Return scores of the classes and of the directions."""
        features = F.gelu(self.trunk(_ink(videos)))
        return self.heads[0](features), self.heads[1](features)

    @torch.no_grad()
    def accuracy(
        self, videos: UInt8[Tensor, "n 3 t h w"], labels: Int64[Tensor, " n"], directions: Int64[Tensor, " n"]
    ) -> tuple[float, float]:
        """Return the shares of clips whose class and whose direction are told right."""
        parts = [self.scores(part) for part in videos.split(64)]
        said = [torch.cat([part[k].argmax(dim=1) for part in parts]) for k in (0, 1)]
        return tuple(float((a == b).double().mean()) for a, b in zip(said, (labels, directions), strict=True))  # type: ignore[return-value]


def train_clip_network(
    videos: UInt8[Tensor, "n 3 t h w"],
    labels: Int64[Tensor, " n"],
    directions: Int64[Tensor, " n"],
    *,
    epochs: int = 12,
    seed: int = 0,
) -> ClipNetwork:
    """Return a network trained to tell what moves in clips, and where it starts to; see `train_judge`."""

    def loss(network: ClipNetwork, part: Tensor) -> Tensor:
        what, where = network.scores(videos[part])
        return F.cross_entropy(what, labels[part]) + F.cross_entropy(where, directions[part])

    network = train_judge(
        lambda: ClipNetwork(int(labels.max()) + 1),
        loss,
        len(labels),
        name="clip-network",
        epochs=epochs,
        batch_size=32,
        lr=3e-3,
        seed=seed,
    )
    network.standardize(torch.cat([network(part) for part in videos.split(64)]))
    return network


@dataclasses.dataclass(frozen=True)
class MovingClipExtractor(VideoExtractor):
    """A `ClipNetwork` as what a Fréchet distance of clips is measured on."""

    network: ClipNetwork


def digit_clip_extractor(
    num_frames: int, size: int, *, digit_size: int | None = None, seed: int
) -> MovingClipExtractor:
    """Return the extractor of the embedded clips of digits of some length and size, trained on the spot.

    It is trained on clips of its own: `seed + 1` draws their paths.

    Args:
        num_frames: Number of frames of a clip.
        size: Height and width in pixels.
        digit_size: Height and width of a digit in pixels; None for half of the frame.
        seed: Seed of its weights and its clips.
    """
    clips = moving_digits(
        "train", EXTRACTOR_CLIPS, num_frames=num_frames, size=size, digit_size=digit_size, seed=seed + 1
    )
    return _extractor(clips, "digit", "digits", seed)


def emoji_clip_extractor(num_frames: int, size: int, *, seed: int) -> MovingClipExtractor:
    """Return the extractor of the embedded clips of emoji, which sees them in gray; arguments as `digit_clip_extractor`."""
    clips = moving_emoji("train", EXTRACTOR_CLIPS, num_frames=num_frames, size=size, seed=seed + 1)
    return _extractor(clips, "emoji", "drawings", seed)


def _extractor(clips: MovingThings, thing: str, of: str, seed: int) -> MovingClipExtractor:
    network = train_clip_network(clips.videos, clips.labels, clips.directions, epochs=3, seed=seed)
    return MovingClipExtractor(
        f"{thing}-clips-cnn-32",
        f"32 features of a small 3-D convolutional classifier of {thing} and direction, trained on {EXTRACTOR_CLIPS:,} clips of the train "
        f"{of} with the same seed (not I3D: these distances compare only with each other)",
        network,
    )


class FrameJudge:
    """A support vector machine on single frames: it says what a clip shows, frame by frame, and shares nothing with our networks.

    A frame is cropped around the thing that it shows and reduced to 8 x 8 pixels; the class that most frames show is the clip's.

    Args:
        videos: Clips to learn from, each of one bright thing on black, or of one in color on white.
        labels: Classes of the things.
        crop: Side of the crop in pixels.
        every: Number of frames from one frame that is learned from to the next.
        in_color: Things are in color on white, and seen so; False looks at the mean of the channels.
    """

    def __init__(
        self,
        videos: UInt8[Tensor, "n 3 t h w"],
        labels: Int64[Tensor, " n"],
        *,
        crop: int = 16,
        every: int = 5,
        in_color: bool = False,
    ) -> None:
        self._crop, self._in_color = crop, in_color
        frames = videos[:, :, ::every].transpose(1, 2)
        self._machine = LabelClassifier(
            crop_thing(frames.flatten(0, 1), crop, on_white=in_color),
            labels.repeat_interleave(frames.shape[1]),
            in_color=in_color,
        )

    def predict(self, videos: UInt8[Tensor, "n 3 t h w"]) -> Int64[Tensor, "n t"]:
        """Return the class of each frame."""
        frames = crop_thing(videos.transpose(1, 2).flatten(0, 1), self._crop, on_white=self._in_color)
        return self._machine.predict(frames).unflatten(0, (videos.shape[0], -1))

    def accuracy(self, videos: UInt8[Tensor, "n 3 t h w"], labels: Int64[Tensor, " n"]) -> tuple[float, float]:
        """Return the share of clips whose label most frames show, and the share of frames that show it."""
        said = self.predict(videos)
        return (
            float((said.mode(dim=1).values == labels).double().mean()),
            float((said == labels[:, None]).double().mean()),
        )


def crop_thing(images: UInt8[Tensor, "n 3 h w"], side: int, *, on_white: bool = False) -> UInt8[Tensor, "n 3 s s"]:
    """Return squares around the center of brightness of each image, or of what is not white, moved inside where they would stick out."""
    # Yellow is bright and yet not white: the channel that has least of it says so.
    bright = (255 - images.amin(dim=1).float() if on_white else images.float().mean(dim=1)).clamp_min(1e-3)
    total = bright.sum(dim=(1, 2))
    corners = []
    for axis, size in ((1, images.shape[2]), (2, images.shape[3])):
        places = torch.arange(size, dtype=torch.float32) + 0.5
        center = (bright.sum(dim=3 - axis) * places).sum(dim=1) / total
        corners.append((center - side / 2).round().long().clamp(0, size - side))
    rows, columns = (corner[:, None] + torch.arange(side) for corner in corners)
    number = torch.arange(len(images))[:, None, None]
    return images.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2).contiguous()


def _ink(videos: Tensor) -> Tensor:
    return videos.float().mean(dim=1, keepdim=True) / 127.5 - 1
