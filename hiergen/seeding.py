"""Seeds as a pure function of what they are for, and draws that do not depend on the batch they are made in.

The first let a resumed run draw what the uninterrupted one would have drawn; the second (`SampleRng`) let an evaluation give the same
samples whatever the batch size and the number of processes.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part and on their order, the same on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def make_rng(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a `torch.Generator` seeded with `derive_seed(*parts)`."""
    rng = torch.Generator(device=device)
    rng.manual_seed(derive_seed(*parts))
    return rng


class SampleRng:
    """A source of random numbers for each sample of a batch: what a sample draws does not depend on what else is in the batch.

    Where a `torch.Generator` is accepted as `rng` for sampling, this is too. A draw for the whole batch is made of one draw of each
    sample's own generator, so the same sample gets the same numbers in a batch of 1 or 64, on one process or on many.

    Args:
        rngs: A generator for each sample, in the order of the batch, all on one device.

    Raises:
        ValueError: If there is none, or they lie on several devices.
    """

    def __init__(self, rngs: Sequence[torch.Generator]) -> None:
        devices = {rng.device for rng in rngs}
        if len(devices) != 1:
            raise ValueError(
                f"rngs are {len(rngs)} generators on {len(devices)} devices, expected some, all on one device"
            )
        self._rngs = tuple(rngs)

    @classmethod
    def of(cls, indices: Iterable[int], *parts: int | str) -> SampleRng:
        """Return the generator `make_rng(*parts, index)` of each sample, on the CPU: the same numbers on every device."""
        return cls([make_rng(*parts, index) for index in indices])

    @property
    def device(self) -> torch.device:
        return self._rngs[0].device

    def only(self, active: Sequence[bool]) -> SampleRng:
        """Return a source that draws for some samples and leaves the generators of the others where they are.

        Those get numbers too, of which nothing may depend: throwaway generators stand in.
        """
        return SampleRng(
            [rng if wanted else torch.Generator(rng.device) for rng, wanted in zip(self._rngs, active, strict=True)]
        )

    def repeated(self, count: int) -> SampleRng:
        """Return a source for `count` samples in place of each, next to each other, which draw in turn from its generator."""
        return SampleRng([rng for rng in self._rngs for _ in range(count)])

    def __len__(self) -> int:
        return len(self._rngs)

    def stack(
        self, draw: Callable[[torch.Generator, tuple[int, ...]], Tensor], shape: Sequence[int], dim: int
    ) -> Tensor:
        """Return a draw of `shape` whose slices along `dim` each come from the generator of one sample.

        Raises:
            ValueError: If the shape holds another number of samples.
        """
        sizes = tuple(shape)
        if not sizes or sizes[dim] != len(self._rngs):
            raise ValueError(
                f"a draw of shape {sizes} has not {len(self._rngs)} samples, one per generator, along dim {dim}"
            )
        one = sizes[:dim] + sizes[dim + 1 :]
        return torch.stack([draw(rng, one) for rng in self._rngs], dim=dim)


#: A source of random numbers: one generator for the whole batch, or one for each sample.
Rng = torch.Generator | SampleRng


def draws_of(rng: Rng | None, active: Tensor) -> Rng | None:
    """Return the source of a draw that only some samples need (bool `(b,)`), so that the others of a `SampleRng` draw nothing."""
    return rng.only(active.tolist()) if isinstance(rng, SampleRng) and not bool(active.all()) else rng


def draw_uniform(shape: Sequence[int], *, rng: Rng | None, device: torch.device, batch_dim: int = 0) -> Tensor:
    """Return float32 numbers in [0, 1) on `device`, drawn where `rng` lives (on `device` without one).

    Args:
        shape: Shape of the result.
        rng: Source of the numbers; a `SampleRng` draws for each sample along `batch_dim` by itself.
        device: Device of the result.
        batch_dim: Dimension of `shape` that counts samples.
    """
    return _draw(torch.rand, shape, rng, device, batch_dim)


def draw_normal(
    shape: Sequence[int],
    *,
    rng: Rng | None,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    batch_dim: int = 0,
) -> Tensor:
    """Return unit normal numbers on `device`; see `draw_uniform`."""
    return _draw(functools.partial(torch.randn, dtype=dtype), shape, rng, device, batch_dim)


def draw_exponential(shape: Sequence[int], *, rng: Rng | None, device: torch.device) -> Tensor:
    """Return float32 numbers of the exponential distribution of mean 1 on `device`; see `draw_uniform`."""
    return _draw(_exponential, shape, rng, device, 0)


def _exponential(size: Sequence[int], *, generator: torch.Generator | None, device: torch.device) -> Tensor:
    return torch.empty(size, device=device).exponential_(generator=generator)


def _draw(
    make: Callable[..., Tensor], shape: Sequence[int], rng: Rng | None, device: torch.device, batch_dim: int
) -> Tensor:
    def draw(source: torch.Generator | None, size: tuple[int, ...]) -> Tensor:
        return make(size, generator=source, device=device if source is None else source.device)

    drawn = rng.stack(draw, shape, batch_dim) if isinstance(rng, SampleRng) else draw(rng, tuple(shape))
    return drawn.to(device)
