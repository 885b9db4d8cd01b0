"""Mean and deviation of a tokenizer's continuous tokens, by channel: what a generator standardizes them with.

Letters: `c` channels of a token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.nn.constants import Constants
from hiergen.pyramid import TokenPyramid


@dataclasses.dataclass(frozen=True)
class LatentStatistics:
    """Channel-wise statistics as JSON values.

    Attributes:
        mean: Mean of each channel over samples and tokens.
        std: Standard deviation of each channel, positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"latent_mean has {len(self.mean)} channels, latent_std {len(self.std)}")
        # A comparison with NaN is false, so this also refuses NaN.
        if not all(value > 0 for value in self.std):
            raise ValueError(f"latent_std is {list(self.std)}, expected positive numbers")


def latent_statistics(pyramids: Iterable[TokenPyramid]) -> LatentStatistics:
    """Return the statistics of all tokens of all levels, accumulated in float64.

    The deviation has n - 1 in its denominator. A channel that never varies gets the deviation 1, so that dividing leaves it 0.

    Raises:
        ValueError: If there is no pyramid or only one token, a level is discrete, or levels differ in channels.

    Source:
        LightningDiT, arXiv:2501.01423, takes up to 10 000 images without mirroring.
    """
    count, mean, squares = 0, None, None
    for pyramid in pyramids:
        if any(spec.is_discrete for spec in pyramid.specs):
            raise ValueError("latent statistics need continuous levels, got a discrete one")
        tokens = pyramid.concat().flatten(0, 1).double()
        batch_mean = tokens.mean(dim=0)
        batch_squares = (tokens - batch_mean).square().sum(dim=0)
        if mean is None or squares is None:
            count, mean, squares = len(tokens), batch_mean, batch_squares
            continue
        # Chan's update: no cancellation, whatever the size of the mean.
        total = count + len(tokens)
        delta = batch_mean - mean
        mean = mean + delta * (len(tokens) / total)
        squares = squares + batch_squares + delta.square() * (count * len(tokens) / total)
        count = total
    if mean is None or squares is None or count < 2:
        raise ValueError(f"latent statistics need at least two tokens, got {count}")
    std = (squares / (count - 1)).sqrt()
    std = torch.where(std > 0, std, torch.ones_like(std))
    return LatentStatistics(tuple(mean.tolist()), tuple(std.tolist()))


#: Numbers by channel, or a list of them for every level.
ChannelValues = Sequence[float] | Sequence[Sequence[float]]


class LatentStandardizer(nn.Module):
    """Tokens to standardized tokens, (x - mean) / std * multiplier, and back, in at least float32.

    Args:
        num_channels: Number of channels of a token.
        mean: Mean of each channel, or of each channel of each level; None for 0.
        std: Standard deviation of each channel, or of each channel of each level; None for 1.
        multiplier: Factor that is applied after standardizing.
        level_sizes: Tokens of each level; needed where the statistics are by level. Tokens are then those of all levels, or of the
            first ones.

    Raises:
        ValueError: If the statistics do not have `num_channels` channels or a list for each level, or a deviation is not positive.
    """

    def __init__(
        self,
        num_channels: int,
        mean: ChannelValues | None,
        std: ChannelValues | None,
        *,
        multiplier: float = 1.0,
        level_sizes: Sequence[int] = (),
    ) -> None:
        super().__init__()
        means = _by_level("latent_mean", mean, (0.0,) * num_channels, len(level_sizes))
        stds = _by_level("latent_std", std, (1.0,) * num_channels, len(level_sizes))
        count = max(len(means), len(stds))
        levels = [LatentStatistics(tuple(means[k % len(means)]), tuple(stds[k % len(stds)])) for k in range(count)]
        for level in levels:
            if len(level.mean) != num_channels:
                raise ValueError(
                    f"latent_mean and latent_std have {len(level.mean)} channels, the level specs {num_channels}"
                )
        self.multiplier = multiplier
        table = torch.tensor([[x.mean for x in levels], [x.std for x in levels]], dtype=torch.float32, device="cpu")
        if count > 1:
            table = table.repeat_interleave(torch.tensor(level_sizes, device="cpu"), dim=1)
        self._constants = Constants(table=table)

    def forward(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Return standardized tokens."""
        wide, mean, std = self._widen(tokens)
        return (wide - mean) / std * self.multiplier

    def inverse(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Return the tokens whose standardized form is `tokens`."""
        wide, mean, std = self._widen(tokens)
        return wide * std / self.multiplier + mean

    def _widen(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wide = tokens if tokens.dtype == torch.float64 else tokens.float()
        # One row for all tokens, or one for each.
        mean, std = self._constants.on(tokens.device)["table"][:, : tokens.shape[1]].to(wide.dtype)
        return wide, mean, std


def _by_level(
    name: str, values: ChannelValues | None, default: Sequence[float], num_levels: int
) -> Sequence[Sequence[float]]:
    """Return one list per level, or a single one that holds for all."""
    if values is None:
        return [default]
    lists = [value for value in values if isinstance(value, Sequence)]
    if not lists:
        return [[float(value) for value in values if not isinstance(value, Sequence)]]
    if len(lists) != num_levels or len(lists) != len(values):
        raise ValueError(
            f"{name} holds {len(values)} entries, expected a number per channel or {num_levels} lists, one per level"
        )
    return lists
