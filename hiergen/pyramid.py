"""Levels of tokens, coarse to fine: the one value that tokenizers and generators share.

Letters: `b` batch, `n` tokens of a level, `d` channels of a token.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hiergen.files import atomic_path
from hiergen.levels import LevelSpec as LevelSpec
from hiergen.levels import specs_from_json as specs_from_json
from hiergen.levels import specs_to_json as specs_to_json


@dataclasses.dataclass(frozen=True)
class TokenPyramid:
    """Levels of tokens with their specs, coarse to fine; checks itself on construction.

    A pyramid may hold a prefix of a tokenizer's levels (`prefix`): nested dropout, previews and early-stopped generation make such
    pyramids. The tokenizer decides how the levels that are present combine into data.

    Attributes:
        levels: One tensor per level: int64 ids `(b, n)` where discrete, floating point `(b, n, d)` where continuous.
        specs: One `LevelSpec` per level.

    Raises:
        ValueError: If levels and specs disagree in number, shape, kind or batch size. Ids are *not* checked against
            `vocab_size` here, because that would synchronise a GPU; `check_ids` does it.
    """

    levels: tuple[Tensor, ...]
    specs: tuple[LevelSpec, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        object.__setattr__(self, "specs", tuple(self.specs))
        if not self.levels:
            raise ValueError("a TokenPyramid needs at least one level, got none")
        if len(self.levels) != len(self.specs):
            raise ValueError(f"got {len(self.levels)} levels but {len(self.specs)} specs")
        batch = self.levels[0].shape[0] if self.levels[0].ndim else 0
        for index, (level, spec) in enumerate(zip(self.levels, self.specs, strict=True)):
            _check_level(index, level, spec, batch)

    @property
    def batch_size(self) -> int:
        return self.levels[0].shape[0]

    @property
    def num_tokens(self) -> int:
        return sum(spec.num_tokens for spec in self.specs)

    @property
    def device(self) -> torch.device:
        return self.levels[0].device

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, samples: slice | Tensor) -> TokenPyramid:
        """Return the pyramid of some samples of the batch (a slice, an index tensor or a boolean mask)."""
        if isinstance(samples, int):
            raise TypeError("index a TokenPyramid with a slice or a tensor of samples; a level is `pyramid.levels[i]`")
        return TokenPyramid(tuple(level[samples] for level in self.levels), self.specs)

    def prefix(self, num_levels: int) -> TokenPyramid:
        """Return the coarsest `num_levels` levels, 1 to `len(self)`."""
        if not 1 <= num_levels <= len(self):
            raise ValueError(f"num_levels is {num_levels}, expected 1 to {len(self)}")
        return TokenPyramid(self.levels[:num_levels], self.specs[:num_levels])

    def concat(self) -> Tensor:
        """Return all levels as one sequence, coarse to fine: `(b, sum n)` ids or `(b, sum n, d)` tokens.

        Raises:
            ValueError: If the levels differ in kind or in channels.
        """
        if len({(spec.is_discrete, None if spec.is_discrete else spec.dim) for spec in self.specs}) != 1:
            raise ValueError(f"levels of different kinds or channels cannot be one sequence: {self.specs}")
        return torch.cat(self.levels, dim=1)

    @classmethod
    def split(cls, sequence: Tensor, specs: Sequence[LevelSpec]) -> TokenPyramid:
        """Return the pyramid whose `concat` is `sequence`.

        Args:
            sequence: `(b, n)` ids or `(b, n, d)` tokens; `n` is the sum of the specs' tokens, or that of a prefix of them.
            specs: All levels of the tokenizer, coarse to fine.

        Raises:
            ValueError: If `n` is not the length of any prefix of `specs`.
        """
        lengths = [sum(spec.num_tokens for spec in specs[: k + 1]) for k in range(len(specs))]
        if sequence.shape[1] not in lengths:
            raise ValueError(f"a sequence of {sequence.shape[1]} tokens ends inside a level; levels end at {lengths}")
        present = tuple(specs[: lengths.index(sequence.shape[1]) + 1])
        return cls(tuple(sequence.split([spec.num_tokens for spec in present], dim=1)), present)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TokenPyramid:
        """Return the pyramid on another device; `dtype` changes continuous levels only."""
        moved = tuple(
            level.to(device=device, dtype=None if spec.is_discrete else dtype)
            for level, spec in zip(self.levels, self.specs, strict=True)
        )
        return TokenPyramid(moved, self.specs)

    def check_ids(self) -> TokenPyramid:
        """Return self if every id lies in its level's vocabulary (this waits for the device).

        Raises:
            ValueError: Naming the level and the offending range.
        """
        for index, (level, spec) in enumerate(zip(self.levels, self.specs, strict=True)):
            if spec.vocab_size is None or level.numel() == 0:
                continue
            low, high = int(level.min()), int(level.max())
            if low < 0 or high >= spec.vocab_size:
                raise ValueError(f"level {index} holds ids {low} to {high}, expected 0 to {spec.vocab_size - 1}")
        return self

    def save(self, path: str | os.PathLike[str], metadata: dict[str, str] | None = None) -> None:
        """Write the pyramid to a safetensors file, atomically. `metadata` values must be strings."""
        header = {**(metadata or {}), "hiergen.specs": json.dumps(specs_to_json(self.specs))}
        tensors = {f"level_{index}": level.detach().contiguous().cpu() for index, level in enumerate(self.levels)}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TokenPyramid:
        """Read what `save` wrote, on the CPU.

        Raises:
            ValueError: If the file is no safetensors file or no token pyramid.
        """
        try:
            with safe_open(Path(path), framework="pt") as file:
                header = file.metadata() or {}
                if "hiergen.specs" not in header:
                    raise ValueError("it is a safetensors file but holds no token pyramid")
                specs = specs_from_json(json.loads(header["hiergen.specs"]))
                return cls(tuple(file.get_tensor(f"level_{index}") for index in range(len(specs))), specs)
        except (SafetensorError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{str(path)!r} cannot be read as a token pyramid: {error}") from error


def _flatten(pyramid: TokenPyramid) -> tuple[list[Any], tuple[LevelSpec, ...]]:
    return list(pyramid.levels), pyramid.specs


def _flatten_with_keys(pyramid: TokenPyramid) -> tuple[list[tuple[Any, Any]], tuple[LevelSpec, ...]]:
    return [(pytree.SequenceKey(index), level) for index, level in enumerate(pyramid.levels)], pyramid.specs


def _unflatten(levels: Iterable[Any], specs: tuple[LevelSpec, ...]) -> TokenPyramid:
    # Unchecked: a tree may be mapped to what is no tensor.
    pyramid = object.__new__(TokenPyramid)
    object.__setattr__(pyramid, "levels", tuple(levels))
    object.__setattr__(pyramid, "specs", specs)
    return pyramid


# So that `torch.export`, `torch.func` and sharding look into pyramids; the tensors are the levels.
pytree.register_pytree_node(
    TokenPyramid,
    _flatten,
    _unflatten,
    serialized_type_name="hiergen.TokenPyramid",
    to_dumpable_context=specs_to_json,
    from_dumpable_context=specs_from_json,
    flatten_with_keys_fn=_flatten_with_keys,
)
# An exported program holds its example inputs; the two are plain data, and may be read without running code.
torch.serialization.add_safe_globals([TokenPyramid, LevelSpec])


def _check_level(index: int, level: Tensor, spec: LevelSpec, batch: int) -> None:
    wanted = "(b, n) int64 ids" if spec.is_discrete else "(b, n, d) floating-point tokens"
    if level.ndim != (2 if spec.is_discrete else 3):
        raise ValueError(f"level {index} has shape {tuple(level.shape)}, expected {wanted}")
    if spec.is_discrete and level.dtype != torch.int64:
        raise ValueError(f"level {index} has dtype {level.dtype}, expected {wanted}")
    if not spec.is_discrete and not level.is_floating_point():
        raise ValueError(f"level {index} has dtype {level.dtype}, expected {wanted}")
    if level.shape[0] != batch:
        raise ValueError(f"level {index} holds {level.shape[0]} samples, level 0 holds {batch}")
    if level.shape[1] != spec.num_tokens:
        raise ValueError(f"level {index} holds {level.shape[1]} tokens, its spec says {spec.num_tokens}")
    if not spec.is_discrete and level.shape[2] != spec.dim:
        raise ValueError(f"level {index} has {level.shape[2]} channels, its spec says {spec.dim}")
