"""`hiergen bench mar`: how long MAR takes to sample, beside a plain transcription of the official loop on the same weights."""

from __future__ import annotations

import copy
import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hiergen.benchmarks.measuring.plain.mar import PlainSampler
from hiergen.benchmarks.measuring.timing import describe_times, plainly, publish, random_model, take_turns
from hiergen.benchmarks.measuring.work import measure_work
from hiergen.benchmarks.settings import MARSettings
from hiergen.environment import choose_device
from hiergen.generators.masked.model import MaskedAR, MaskedARSettings

#: Returns the tokens of class labels.
Sampler = Callable[[Tensor, torch.Generator], Tensor]


def run(settings: MARSettings) -> dict[str, Any]:
    """Measure, print a table, and return all numbers.

    Returns:
        JSON values: the settings, the machine, and under "rows" for each batch size and sampler the median, fastest and slowest
        time of a batch in seconds, images per second, how many times faster than the plain sampler it is (medians), and the largest
        relative difference of a sampler's tokens from the plain one's when both are given the same noise.
    """
    device = choose_device(settings.device)
    model = _random_model(settings)
    nn.Module.to(model, device)
    rows = [row for batch in settings.batches for row in _measure_batch(model, batch, settings)]
    return publish(
        settings,
        device,
        rows,
        title=f"{settings.preset}, {settings.num_steps} steps, {settings.head_steps} head steps",
        caption="x plain: how many times faster than a plain transcription of the official loop on the same weights",
        names=("sampler",),
        extra={"x plain": ("times_faster_than_plain", ".2f"), "difference": ("relative_difference", ".1e")},
    )


def _random_model(settings: MARSettings) -> MaskedAR:
    model: MaskedAR = random_model(settings.preset, "MaskedAR", seed=settings.seed)
    # A new head is zero and would answer every condition alike.
    rng = torch.Generator().manual_seed(settings.seed)
    for layer in (model.head.output, *(block.modulation for block in model.head.blocks)):
        nn.init.normal_(layer.weight, std=0.02, generator=rng)
    return model


def _measure_batch(model: MaskedAR, batch: int, settings: MARSettings) -> list[dict[str, Any]]:
    labels = (torch.arange(batch) % model.config["num_classes"]).to(model.device)
    sampling = MaskedARSettings(
        num_steps=settings.num_steps, head_steps=settings.head_steps, guidance_scale=settings.guidance_scale
    )
    plain = PlainSampler(model)
    samplers: dict[str, Sampler] = {
        "hiergen": lambda labels, rng: model.generate(labels, sampling, rng=rng).concat(),
        "plain": plainly(lambda labels, rng: plain.generate(labels, sampling, rng=rng)),
    }
    if settings.compile:
        compiled = copy.deepcopy(model).compile_sampling(mode=settings.compile_mode)
        samplers["compiled"] = lambda labels, rng: compiled.generate(labels, sampling, rng=rng).concat()
    times = take_turns(
        {name: functools.partial(_draw, sampler, labels, settings.seed) for name, sampler in samplers.items()},
        repeats=settings.repeats,
        device=labels.device,
    )
    ours = {
        name: model.standardize(_draw(sampler, labels, settings.seed))
        for name, sampler in samplers.items()
        if name != "plain"
    }
    theirs = plain.generate(labels, sampling, rng=_rng(labels, settings.seed), shared_noise=True)
    work = measure_work(functools.partial(_draw, samplers["hiergen"], labels, settings.seed))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return [
        {
            "batch": batch,
            "sampler": name,
            **describe_times(times[name], batch),
            **(work if name == "hiergen" else {}),
            "times_faster_than_plain": medians["plain"] / medians[name],
            "relative_difference": float((ours.get(name, ours["hiergen"]) - theirs).abs().max() / theirs.abs().max()),
        }
        for name in samplers
    ]


def _draw(sampler: Sampler, labels: Tensor, seed: int) -> Tensor:
    return sampler(labels, _rng(labels, seed))


def _rng(labels: Tensor, seed: int) -> torch.Generator:
    return torch.Generator(labels.device).manual_seed(seed)
