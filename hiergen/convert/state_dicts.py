"""What every converter does with a foreign state dict: find it in a checkpoint, read sizes off it, and fill a model with it.

A checkpoint is searched, not known: the weights of a family are where a tensor stands that all of the family have, its anchor. What stands
before the anchor (keys of dictionaries, prefixes of names) says whose weights they are: the trained ones, or their average.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

#: Parts that wrappers put into names, anywhere: torch.compile, activation checkpointing, FSDP, DistributedDataParallel and AveragedModel,
#: Accelerate and Lightning's strategies.
_WRAPPERS = frozenset(
    ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_fpw_module", "_forward_module", "module")
)
#: A word by which an average of weights is called, between underscores, digits or the ends of a part.
_AVERAGE = re.compile(r"(^|[\W_\d])(emas?|averaged?|averages|avg|swa|shadow|polyak)($|[\W_\d])")
#: What stands for the trained weights where an average is there too.
_TRAINED = frozenset(("online", "online_model", "current_model_state", "raw", "raw_model"))
#: What averages note beside the weights, by its last name.
_NOTES = frozenset(("n_averaged", "num_updates", "decay", "initted", "step", "steps", "optimization_step"))
#: Keys under which averages keep a list of tensors without names.
_NAMELESS = ("shadow_params", "collected_params")


@dataclasses.dataclass(frozen=True)
class _Found:
    """A state dict inside a checkpoint: where it stands, its tensors by their own names, and how much of an average it is."""

    place: str
    tensors: dict[str, Tensor]
    rank: int


def unwrap_state_dict(checkpoint: Mapping[str, Any], *, anchor: str) -> dict[str, Tensor]:
    """Return the tensors of the model inside a checkpoint by their own names, without containers, prefixes and wrappers.

    Where trained and averaged weights are both there, the averaged are returned, and one line of the log says so. Plain values beside the
    tensors (epochs, settings) are left out, and what stands under other prefixes than the anchor.

    Args:
        checkpoint: A state dict, or dictionaries that hold some at any depth.
        anchor: Name of a tensor that every model of the family has and nothing else in its checkpoints.

    Raises:
        ValueError: If no weights are found, naming what is there; if there are several and none is the average; or if the average has no
            names.
    """
    found = list(_search(checkpoint, ()))
    at = [entry for tensors, place, notes in found for entry in _anchored(tensors, place, notes, anchor)]
    named = [entry for tensors, place, _ in found for entry in _squashed(tensors, place, at)]
    # A list of tensors is an average that could not be told from the trained weights by anything but its order.
    nameless = [place for key in _NAMELESS for place in _places(checkpoint, key, ())]
    if nameless and not any(entry.rank > 1 for entry in (*at, *named)):
        raise ValueError(
            f"the checkpoint holds an average of weights as a list of tensors without names, {nameless[0]!r}: "
            f"save the averaged model's state dict, which names them{_alternative(at)}"
        )
    if not at:
        raise ValueError(f"the state dict lacks tensor {anchor!r}, after any prefix: {_contents(checkpoint)}")
    return _choose([*at, *named], anchor)


def _search(
    value: Mapping[Any, Any], place: tuple[str, ...]
) -> Iterator[tuple[dict[str, Tensor], tuple[str, ...], set[str]]]:
    """Yield the tensors of every dictionary by their names without wrappers, with its place and the notes of averages in it."""
    tensors: dict[str, Tensor] = {}
    notes = set()
    for key, item in value.items():
        if inner := _mapping(item):
            yield from _search(inner, (*place, str(key)))
        elif isinstance(item, Tensor) and isinstance(key, str):
            # "module" is a wrapper only before another name, e.g. not in "module" alone.
            *parts, last = key.split(".")
            name = ".".join([part for part in parts if part not in _WRAPPERS] + [last])
            if last in _NOTES and item.numel() == 1:
                notes.add(name)
            elif name in tensors:
                raise ValueError(f"the state dict holds {name!r} twice, once as {key!r}: expected one tensor per name")
            else:
                tensors[name] = item
    if tensors:
        yield tensors, place, notes


def _mapping(value: Any) -> Mapping[Any, Any] | None:
    """Return a dictionary as it is, a list as a dictionary by its indices, and None for anything else."""
    if isinstance(value, list | tuple):
        return {str(index): item for index, item in enumerate(value)}
    return value if isinstance(value, Mapping) else None


def _anchored(tensors: Mapping[str, Tensor], place: tuple[str, ...], notes: set[str], anchor: str) -> Iterator[_Found]:
    """Yield the part of a dictionary under every prefix that stands before the anchor."""
    for name in tensors:
        if name != anchor and not name.endswith(f".{anchor}"):
            continue
        prefix = name.removesuffix(anchor)
        part = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        parts = [*place, *prefix.split(".")]
        rank = max(map(_rank, parts))
        if any(part in _TRAINED for part in parts):
            rank = 0
        elif f"{prefix}n_averaged" in notes:
            rank = 2
        yield _Found(_name(place, prefix), part, rank)


def _rank(part: str) -> int:
    """Return 2 for the name of an average, else 1."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", part).lower()
    return 2 if _AVERAGE.search(words) else 1


def _squashed(tensors: Mapping[str, Tensor], place: tuple[str, ...], named: Sequence[_Found]) -> Iterator[_Found]:
    """Yield averages whose names lost their dots: buffers of a module that may have none (LitEma), or have underscores (mmcv)."""
    for raw in named:
        full = {re.sub(r"[._]", "", name): name for name in raw.tensors}
        groups: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            match = re.fullmatch(r"(.*?ema[._])([^.]+)", name)
            own = None if match is None else full.get(re.sub(r"[._]", "", match[2]))
            if match is not None and own is not None:
                groups.setdefault(match[1], {})[own] = value
        for head, average in groups.items():
            # Buffers are not averaged; neither is what is not trained.
            others = {name: value for name, value in raw.tensors.items() if not name.startswith(head)}
            yield _Found(_name(place, head), {**others, **average}, 2)


def _choose(found: Sequence[_Found], anchor: str) -> dict[str, Tensor]:
    best = max(entry.rank for entry in found)
    chosen, *others = [entry for entry in found if entry.rank == best]
    if any(not _equal(chosen.tensors, other.tensors) for other in others):
        places = ", ".join(entry.place for entry in (chosen, *others))
        raise ValueError(
            f"the checkpoint holds {1 + len(others)} models with a tensor {anchor!r}, under {places}: expected one, or one and its average"
        )
    if chosen.rank > 1 and any(entry.rank < 2 for entry in found):
        trained = next(entry.place for entry in found if entry.rank < 2)
        logger.warning("averaged weights are taken, %s, not the trained ones, %s", chosen.place, trained)
    return chosen.tensors


def _equal(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(
        value.dtype == others[name].dtype and torch.equal(value, others[name]) for name, value in some.items()
    )


def _name(place: tuple[str, ...], prefix: str) -> str:
    return repr("/".join((*place, prefix)).rstrip("/.") or "the file itself")


def _places(value: Mapping[Any, Any], key: str, place: tuple[str, ...]) -> Iterator[str]:
    """Yield the places of a list of tensors under a key."""
    for name, item in value.items():
        if name == key and isinstance(item, list | tuple) and any(isinstance(entry, Tensor) for entry in item):
            yield "/".join((*place, key))
        elif inner := _mapping(item):
            yield from _places(inner, key, (*place, str(name)))


def _alternative(found: Sequence[_Found]) -> str:
    return f", or pass the trained weights, {found[0].place}, alone" if found else ""


def _contents(checkpoint: Mapping[Any, Any]) -> str:
    """Return in words what a checkpoint holds."""
    if not checkpoint:
        return "it is empty"
    flat = [
        name for tensors, _, _ in _search(checkpoint, ()) for name in tensors if re.search(r"(^|\.)_?flat_param", name)
    ]
    if flat:
        return (
            f"it holds {flat[0]!r}, FSDP's flattened parameters: save a full state dict (StateDictType.FULL_STATE_DICT)"
        )
    shown = [
        f"{name} ({'dictionary' if isinstance(value, Mapping) else 'tensor' if isinstance(value, Tensor) else type(value).__name__})"
        for name, value in list(checkpoint.items())[:8]
    ]
    more = f" and {len(checkpoint) - 8} more" if len(checkpoint) > 8 else ""
    return f"it holds {', '.join(shown)}{more}"


def fill_model(model: nn.Module, tensors: Mapping[str, Tensor], *, names: Mapping[str, str] | None = None) -> None:
    """Give a model's parameters and saved buffers these values (copies), keeping the values' dtypes.

    The model may have been built with its parameters on the meta device.

    Args:
        model: The model to fill.
        tensors: Values by the model's names.
        names: The foreign name of each of the model's names, for the errors.

    Raises:
        ValueError: If a tensor is missing, surplus or of another shape; each is named.
    """
    foreign = names or {}
    wanted = model.state_dict()
    missing = [foreign.get(name, name) for name in wanted if name not in tensors]
    surplus = [foreign.get(name, name) for name in tensors if name not in wanted]
    if missing or surplus:
        raise ValueError(f"the state dict does not fit: missing {_shorten(missing)}, unexpected {_shorten(surplus)}")
    for name, value in tensors.items():
        if value.shape != wanted[name].shape:
            raise ValueError(
                f"{foreign.get(name, name)!r} has shape {tuple(value.shape)}, expected {tuple(wanted[name].shape)}"
            )
    copies = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    model.load_state_dict(copies, assign=True)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter of ours, the foreign tensors that make it, stacked along the first dimension, and the shape of each of those."""

    name: str
    official: tuple[str, ...]
    shape: tuple[int, ...]


def fill_entries(model: nn.Module, tensors: Mapping[str, Tensor], entries: Sequence[Entry]) -> None:
    """Give a model the values of foreign tensors (copies, in float32); it may have been built on the meta device.

    Raises:
        ValueError: If a tensor is missing, unknown, or of another shape, naming it.
    """
    wanted = {name: entry.shape for entry in entries for name in entry.official}
    for name, shape in wanted.items():
        if name not in tensors:
            raise ValueError(f"the state dict lacks tensor {name!r} of shape {shape}")
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"tensor {name!r} has shape {tuple(tensors[name].shape)}, expected {shape}")
    unknown = sorted(set(tensors) - set(wanted))
    if unknown:
        raise ValueError(
            f"the state dict holds {len(unknown)} tensors that {type(model).__name__} has not: {', '.join(unknown[:5])}"
        )
    ours = model.state_dict()
    loaded = {
        entry.name: torch.cat([tensors[name].detach().reshape(-1) for name in entry.official])
        .reshape(ours[entry.name].shape)
        .to(torch.float32, copy=True)
        for entry in entries
    }
    model.load_state_dict(loaded, assign=True)


def take_entries(model: nn.Module, entries: Sequence[Entry]) -> dict[str, Tensor]:
    """Return a model's values under their foreign names and in their foreign shapes; the tensors share memory with the model."""
    ours, result = model.state_dict(), {}
    for entry in entries:
        parts = ours[entry.name].chunk(len(entry.official))
        result.update({name: part.reshape(entry.shape) for name, part in zip(entry.official, parts, strict=True)})
    return result


def shape_of(tensors: Mapping[str, Tensor], name: str, rank: int) -> tuple[int, ...]:
    """Return the shape of a tensor.

    Raises:
        ValueError: If the tensor is missing or of another rank.
    """
    if name not in tensors:
        raise ValueError(f"the state dict lacks tensor {name!r}")
    shape = tuple(tensors[name].shape)
    if len(shape) != rank:
        raise ValueError(f"tensor {name!r} has shape {shape}, expected {rank} dimensions")
    return shape


def count_of(tensors: Mapping[str, Tensor], prefix: str, *, at_least: int = 1) -> int:
    """Return how many modules a list `prefix.0`, `prefix.1`, ... has: one more than the highest, so that a gap shows as missing.

    Raises:
        ValueError: If there are fewer than `at_least`.
    """
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)(\.|$)")
    count = 1 + max((int(match[1]) for match in map(pattern.match, tensors) if match), default=-1)
    if count < at_least:
        raise ValueError(f"the state dict lacks tensors {prefix + '.0'!r} and following")
    return count


def check_settings(settings: Mapping[str, Any], model: type[Any]) -> None:
    """Check that every key is an argument of a model's constructor.

    Raises:
        ValueError: Naming the first that is not.
    """
    known = [name for name in inspect.signature(model.__init__).parameters if name != "self"]
    for name in settings:
        if name not in known:
            raise ValueError(f"config entry {name!r} is no setting of {model.__name__}; known are {', '.join(known)}")


def _shorten(names: list[str], most: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:most]) or "nothing"
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
