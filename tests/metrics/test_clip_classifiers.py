from __future__ import annotations

import torch

from hiergen.data.videos.moving_digits import moving_digits
from hiergen.data.videos.moving_emoji import moving_emoji
from hiergen.metrics.clip_classifiers import FrameJudge, crop_thing, train_clip_network


def test_the_crop_follows_what_is_bright() -> None:
    images = torch.zeros(3, 3, 12, 12, dtype=torch.uint8)
    images[0, :, 2:6, 5:9] = torch.arange(16, dtype=torch.uint8).reshape(4, 4) + 100
    images[1, :, 10:, 10:] = 255
    crops = crop_thing(images, 4)
    assert crops.shape == (3, 3, 4, 4)
    assert torch.equal(crops[0], images[0, :, 2:6, 5:9])
    # In a corner the square stays inside; where all is black it is the middle.
    assert torch.equal(crops[1], images[1, :, 8:, 8:])
    assert torch.equal(crops[2], images[2, :, 4:8, 4:8])


def test_the_crop_follows_what_is_not_white() -> None:
    images = torch.full((2, 3, 12, 12), 255, dtype=torch.uint8)
    # Yellow is as bright as can be but for the blue channel.
    images[0, 2, 2:6, 5:9] = 0
    crops = crop_thing(images, 4, on_white=True)
    assert torch.equal(crops[0], images[0, :, 2:6, 5:9])
    assert torch.equal(crops[1], images[1, :, 4:8, 4:8])


def test_the_judge_knows_emoji_by_their_colors_too() -> None:
    train, test = moving_emoji("train", 200, num_frames=4), moving_emoji("train", 40, num_frames=4, seed=1)
    by_color, by_shape = (
        FrameJudge(train.videos, train.labels, crop=36, every=2, in_color=color) for color in (True, False)
    )
    assert by_color.accuracy(test.videos, test.labels)[0] > 0.9
    assert by_color.accuracy(test.videos, test.labels)[1] > by_shape.accuracy(test.videos, test.labels)[1]
    assert by_color.accuracy(255 - test.videos, test.labels)[0] < 0.5


def test_the_judge_knows_real_digits_wherever_they_are_and_not_noise() -> None:
    train, test = moving_digits("train", 200, num_frames=4), moving_digits("test", 60, num_frames=4)
    judge = FrameJudge(train.videos, train.labels, every=2)
    by_clip, by_frame = judge.accuracy(test.videos, test.labels)
    assert by_clip > 0.9
    assert by_frame > 0.9
    said = judge.predict(test.videos)
    assert said.shape == (60, 4)
    wrong, _ = judge.accuracy(test.videos, (test.labels + 1) % 10)
    assert wrong < 0.1
    noise = torch.randint(0, 256, test.videos.shape, dtype=torch.uint8)
    assert judge.accuracy(noise, test.labels)[0] < 0.4


def test_the_network_learns_its_clips_and_repeats_by_seed() -> None:
    clips = moving_digits("train", 40, num_frames=8)
    network = train_clip_network(clips.videos, clips.labels, clips.directions, epochs=10)
    digits, directions = network.accuracy(clips.videos, clips.labels, clips.directions)
    assert digits > 0.3
    assert directions > 0.4
    features = network(clips.videos)
    torch.testing.assert_close(features.mean(dim=0), torch.zeros(32), rtol=0, atol=1e-4)
    torch.testing.assert_close(features.std(dim=0), torch.ones(32), rtol=0, atol=1e-3)
    few = clips.videos[:20], clips.labels[:20], clips.directions[:20]
    again = [train_clip_network(*few, epochs=1, seed=3)(clips.videos[:4]) for _ in range(2)]
    assert torch.equal(*again)
