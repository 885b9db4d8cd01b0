"""The order of samples as a pure function of (seed, position), so that any run can start at any position.

Position p of the endless stream belongs to epoch p // n; every epoch is its own permutation, or its own draw by the samples' weights.
Nothing is saved but the position, and workers hold no state.
"""

from __future__ import annotations

import contextlib
import functools
import time
import traceback
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from hiergen.data.dataset import Dataset, Sample
from hiergen.seeding import derive_seed

#: Seconds in which PyTorch says that a worker has died, once its connection is lost.
SIGNAL_PATIENCE = 5.0


class SampleStream(TorchDataset[dict[str, Tensor]]):
    """Item `step` is the share of process `rank` of the global batch that starts at sample `step * batch_size`.

    The global batch does not depend on the number of processes.

    Args:
        weights: How often each sample is visited, relative to the others, `(n,)`, positive; None visits each once per epoch. With weights
            an epoch still has n visits, of which a sample has its share, rounded up or down at random.

    Raises:
        ValueError: If the dataset is empty, `batch_size` is not a multiple of `world_size`, or `weights` are not one positive number
            per sample.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        weights: Float64[Tensor, " n"] | None = None,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("the dataset holds no samples")
        if weights is not None and (
            weights.shape != (len(dataset),) or not bool(((weights > 0) & weights.isfinite()).all())
        ):
            raise ValueError(
                f"weights have shape {tuple(weights.shape)} and are {float(weights.min()):g} to {float(weights.max()):g}, "
                f"expected a finite positive number for each of {len(dataset)} samples"
            )
        if batch_size % world_size:
            raise ValueError(f"batch_size is {batch_size}, expected a multiple of the {world_size} processes")
        self._dataset = dataset
        self._batch_size = batch_size
        self._share = batch_size // world_size
        self._seed = seed
        self._rank = rank
        self._weights = weights

    def samples(self, step: int) -> list[Sample]:
        """Return the (index, visit) pairs of this process at one step."""
        start = step * self._batch_size + self._rank * self._share
        size = len(self._dataset)
        found = []
        for position in range(start, start + self._share):
            epoch, offset = divmod(position, size)
            index = int(_order(self._seed, epoch, size, self._weights)[offset])
            # By weights a sample may come twice in an epoch, and then differs by its position.
            found.append((index, epoch if self._weights is None else position))
        return found

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        return self._dataset.batch(self.samples(step), seed=self._seed)


def stream_batches(stream: SampleStream, steps: Iterable[int], *, num_workers: int = 0) -> Iterator[dict[str, Tensor]]:
    """Return the batches of the given steps, in order, whatever the number of workers."""
    loader = DataLoader(
        stream,
        batch_size=None,
        sampler=list(steps) if not isinstance(steps, range) else steps,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        # Without a generator of its own the loader would draw from the global one and shift every later draw of the run.
        generator=torch.Generator().manual_seed(0),
        persistent_workers=False,
    )
    return until_the_signal(loader)


def until_the_signal(loader: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of a loader; where a worker dies while it hands one over, wait for PyTorch's signal of that."""
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (ConnectionError, EOFError):
            # The signal is on its way, and would otherwise be raised wherever this error has got to by then.
            time.sleep(SIGNAL_PATIENCE)
            raise
        yield batch


@contextlib.contextmanager
def explain_worker_death() -> Iterator[None]:
    """Around the use of a loader with workers: the death of one becomes an error that says what to do.

    Raises:
        ChildProcessError: If a data worker was killed. PyTorch notices it through a signal, so anywhere inside.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        # What the error refers to would keep the loader alive, and PyTorch would raise again when any other child process ends.
        traceback.clear_frames(error.__traceback__)
        raise ChildProcessError(
            f"a data worker died ({str(error).splitlines()[0]}): most often memory ran out. Run again to continue from the last "
            "checkpoint, with a smaller num_workers if it happens again"
        ) from error


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, size: int, weights: Tensor | None) -> np.ndarray:
    """Return the samples of an epoch; weights are cached by identity, as tensors are hashed."""
    rng = np.random.Generator(np.random.Philox(derive_seed(seed, "epoch", epoch)))
    order = rng.permutation(size)
    if weights is None:
        return order
    # Systematic sampling: evenly spaced points on the line of all weights, laid end to end.
    ends = weights.numpy()[order].cumsum()
    points = (np.arange(size) + rng.random()) * (ends[-1] / size)
    return rng.permutation(order[np.searchsorted(ends[:-1], points, side="right")])
