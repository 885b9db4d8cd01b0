"""Steps are told by timesteps alone: each test is a list of the timesteps that a sampler gives, pass by pass."""

from __future__ import annotations

import pytest
import torch

from hiergen.video.steps import StepCounter


def counted(*timesteps: float, counter: StepCounter | None = None) -> list[int]:
    counter = counter or StepCounter(warmup_steps=1)
    found = []
    for timestep in timesteps:
        counter.observe(timestep)
        found.append(counter.step)
    return found


def test_without_guidance_or_with_batched_guidance_every_pass_is_a_step():
    assert counted(999, 700, 300, 10) == [0, 1, 2, 3]


def test_guidance_in_two_passes_is_one_step():
    assert counted(999, 999, 700, 700, 300, 300) == [0, 0, 1, 1, 2, 2]


def test_the_next_video_starts_at_the_first_step():
    assert counted(999, 700, 300, 999, 700, 300) == [0, 1, 2, 0, 1, 2]


def test_a_video_that_was_broken_off_does_not_delay_the_next():
    assert counted(999, 700, 999, 999, 700) == [0, 1, 0, 0, 1]


def test_samplers_may_go_up():
    assert counted(0.0, 0.3, 0.6, 0.0, 0.3) == [0, 1, 2, 0, 1]


def test_videos_of_one_step_are_all_first_steps():
    assert counted(999, 999, 999) == [0, 0, 0]


def test_after_another_timestep_in_a_video_of_one_step_a_reset_is_needed():
    counter = StepCounter(warmup_steps=1)
    assert counted(999, 900, counter=counter) == [0, 1]
    counter.reset()
    assert counted(900, 800, counter=counter) == [0, 1]


def test_tokens_with_their_own_timesteps_count_by_the_largest():
    given = torch.tensor([[0.0, 0.0, 800.0, 800.0]])
    assert counted(given, given / 2, given / 2) == [0, 1, 1]


def test_first_steps_are_dense():
    counter = StepCounter(warmup_steps=2)
    assert counter.is_dense
    dense = []
    for timestep in (900, 900, 600, 600, 300, 300, 900):
        counter.observe(timestep)
        dense.append(counter.is_dense)
    assert dense == [True, True, True, True, False, False, True]


def test_without_dense_steps_nothing_reads_timesteps():
    assert not StepCounter(warmup_steps=0).reads_timesteps
    assert not StepCounter(warmup_steps=0).is_dense
    assert StepCounter(warmup_steps=0, is_needed=True).reads_timesteps
    assert StepCounter(warmup_steps=1).reads_timesteps


def test_steps_given_by_hand_replace_timesteps():
    counter = StepCounter(warmup_steps=2)
    counter.set_step(1)
    assert (counter.is_dense, counter.reads_timesteps) == (True, False)
    counter.set_step(2)
    assert (counter.is_dense, counter.step) == (False, 2)
    with pytest.raises(ValueError, match="step is -1, expected the number of a sampling step"):
        counter.set_step(-1)
