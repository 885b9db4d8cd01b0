"""Metrics of pairs: an image against what was made of it. An entry in `PAIR_METRICS` is all that a metric of reports takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from hiergen.metrics.pixel import MS_SSIM_MIN_SIDE, WINDOW, ms_ssim, psnr, ssim

#: Maps images and their references, `(b, 3, h, w)` in [-1, 1], to one value per image.
Measure = Callable[[Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class PairMetric:
    """A metric of pairs of images; reports have its mean, its interval, its rates and its comparison.

    Attributes:
        measure: Computes it.
        min_side: Smallest side in pixels of images that it can be computed of.
        is_drawn: Whether it has a panel in the picture of rates.
    """

    measure: Measure
    min_side: int = 1
    is_drawn: bool = True


#: Metrics of pairs by the name that reports have.
PAIR_METRICS: dict[str, PairMetric] = {
    "psnr": PairMetric(psnr),
    "ssim": PairMetric(ssim, min_side=WINDOW),
    "ms_ssim": PairMetric(ms_ssim, min_side=MS_SSIM_MIN_SIDE, is_drawn=False),
}
#: The one that needs weights, and is therefore there or not.
LPIPS_NAME = "lpips"
#: Those that hiergen has itself.
_BUILT_IN = frozenset((*PAIR_METRICS, LPIPS_NAME))


def pair_metric_names() -> tuple[str, ...]:
    """Return the names of all metrics of pairs, in the order of reports."""
    return (*PAIR_METRICS, LPIPS_NAME)


def added_metrics() -> list[str]:
    """Return the names of the metrics that a program has added."""
    return [name for name in PAIR_METRICS if name not in _BUILT_IN]


def measure_pairs(pixels: Tensor, real: Tensor, lpips: Measure | None) -> dict[str, Tensor]:
    """Return every metric of each pair of uint8 images by name, but those that images of their size have not.

    Args:
        pixels: Images to measure, `(b, 3, h, w)`.
        real: What they were made of.
        lpips: Computes LPIPS; None leaves it out.
    """
    x, y = pixels.float() / 127.5 - 1, real.float() / 127.5 - 1
    side = min(x.shape[2:])
    found = {name: metric.measure(x, y) for name, metric in PAIR_METRICS.items() if side >= metric.min_side}
    return found if lpips is None else {**found, LPIPS_NAME: lpips(x, y)}
