"""The weights that a run starts from: read from a model, a pipeline or another run, and copied strictly but for named parts."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiergen.config import nearest, to_json
from hiergen.generators.base import Generator
from hiergen.pipelines.loading import from_pretrained
from hiergen.registry import get_preset, model_class
from hiergen.training.tasks.settings import TaskConfig

#: Names of the table of classes; the first is what `init_except` calls it in every generator.
CLASS_TABLES = ("class_embedding", "label_embed")
#: What the data decide about a generator: its condition.
_OF_THE_DATA = ("num_classes", "feature_shapes", "text_shape", "text_encoder")


def load_source(init: str, task: TaskConfig) -> Any:
    """Return the model of the task's class that `TrainConfig.init` names.

    Raises:
        ValueError: If nothing is there, it is of another class, the run is not finished, or the task has no preset.
    """
    preset = getattr(task, "preset", None)
    if preset is None:
        raise ValueError(f"init is {init!r}, but a {type(task).__name__} has no preset that says what to load")
    wanted = model_class(get_preset(preset).model)
    folder = Path(init)
    if (folder / "log.jsonl").is_file() or (folder / "checkpoints").is_dir():
        if not (folder / "model" / "config.json").is_file():
            raise ValueError(f"init is {init!r}, a run that has not written its model yet: finish it first")
        init = str(folder / "model")
    found = from_pretrained(init)
    parts = list(getattr(found, "components", {"model": found}).values())
    fitting = [part for part in parts if isinstance(part, wanted)]
    if not fitting:
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise ValueError(
            f"init is {init!r}, which holds {kinds}, expected a {wanted.__name__} as this recipe trains: "
            "take the recipe of that model"
        )
    return fitting[0]


def take_sizes(task: Any, source: Any) -> Any:
    """Return a task's config whose model is built as the source is, with the task's own overrides on top.

    The condition of a generator (its classes) is left to the data; and so is their hierarchy where the task reads it off their names.
    """
    known = inspect.signature(type(source).__init__).parameters
    left: tuple[str, ...] = _OF_THE_DATA if isinstance(source, Generator) else ()
    decided = [getattr(task, name, None) for name in ("class_paths", "class_table", "captions")]
    left += ("class_hierarchy",) if any(decided) else ()
    entries = {name: to_json(value) for name, value in source.config.items() if name in known and name not in left}
    return dataclasses.replace(task, overrides={**entries, **task.overrides})


@torch.no_grad()
def copy_weights(model: Any, source: Any, *, init: str, may_differ: Iterable[str] = ()) -> tuple[list[str], set[str]]:
    """Copy a source's weights into a model of the same class.

    Args:
        model: The model, changed in place.
        source: The model to copy from.
        init: Where it came from, for messages.
        may_differ: `TrainConfig.init_except`.

    Returns:
        What was copied and what was not, as sentences; and the names of tensors that are not wholly the source's.

    Raises:
        ValueError: If a tensor that may not differ is missing or of another shape, the classes differ, or a part is unknown.
    """
    parts = tuple(may_differ)
    own, theirs = model.state_dict(), source.state_dict()
    known = {segment for name in own for segment in _segments(name)}
    for part in parts:
        if not any(_is_in(name, [part]) for name in own):
            raise ValueError(
                f"init_except holds {part!r}, which is no part of a {type(model).__name__}{nearest(part, known)}"
            )
    problems = [
        f"{name} is {_shape(theirs.get(name))} there, {_shape(own.get(name))} here"
        for name in {**own, **theirs}
        if _shape(own.get(name)) != _shape(theirs.get(name)) and not _is_in(name, parts)
    ]
    of_classes = [name for name in own if CLASS_TABLES[0] in _segments(name)]
    # Those of a hierarchy, or of texts, have no row per class.
    has_rows = model.config.get("num_classes") is not None
    tables = [name for name in of_classes if has_rows and name.count(".levels.") == 0]
    problems += [] if all(_is_in(name, parts) for name in of_classes) else _other_classes(model, source)
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(
            f"init is {init!r}, which does not fit: {'; '.join(problems[:4])}{more}. Change the overrides, or name the parts that may "
            f"differ, e.g. --init-except {CLASS_TABLES[0]}"
        )
    said, fresh = [], set[str]()
    # What was copied from the tokenizer of the codes is right already.
    kept = {name for name in own if _segments(name)[0] in getattr(model, "tokenizer_parts", ())}
    for name, tensor in own.items():
        if name in kept:
            continue
        if name in tables:
            rows, number = _carry_rows(tensor, theirs.get(name), model, source)
            said.append(f"{name}: {rows} of {number} classes kept, {number - rows} drawn anew")
            fresh |= {name} if rows < number else set()
        elif name in theirs and theirs[name].shape == tensor.shape:
            tensor.copy_(theirs[name])
        else:
            said.append(f"{name}: drawn anew")
            fresh.add(name)
    changed = [
        f"{name} was {value!r}, is {model.config.get(name)!r}"
        for name, value in source.config.items()
        if name in inspect.signature(type(model).__init__).parameters
        and name not in _OF_THE_DATA
        and not (name == "class_hierarchy" and model.config.get("text_shape"))
        and to_json(value) != to_json(model.config.get(name))
    ]
    whole = len(own) - len(fresh) - len(kept)
    return [f"started from {init!r}: {whole} of {len(own)} tensors copied whole", *said, *changed], fresh


def _carry_rows(table: Tensor, source: Tensor | None, model: Any, other: Any) -> tuple[int, int]:
    """Fill a table of classes with the rows of the same classes; return how many were there, and of how many."""
    new, old = int(model.config["num_classes"]), other.config["num_classes"]
    if source is None or source.shape[1:] != table.shape[1:] or old is None:
        return 0, new
    if table.shape[0] > new and source.shape[0] > old:
        # The row that stands for no class.
        table[new].copy_(source[old])
    mine, theirs = _names(model), _names(other)
    if mine and theirs:
        place = {name: index for index, name in theirs.items()}
        pairs = [(index, place[name]) for index, name in mine.items() if name in place]
    else:
        pairs = [(index, index) for index in range(new if new == old else 0)]
    for index, found in pairs:
        table[index].copy_(source[found])
    return len(pairs), new


def _other_classes(model: Any, source: Any) -> list[str]:
    """Return what is wrong if two generators of the same sizes have other classes, whose rows would mean something else."""
    mine, theirs = _names(model), _names(source)
    if not mine or not theirs or mine == theirs:
        return []
    return [f"its classes are {_listed(theirs)}, those of the data {_listed(mine)}"]


def _names(model: Any) -> dict[int, str]:
    names: Mapping[str, str] = model.config.get("id2label") or {}
    return {int(index): name for index, name in names.items()}


def _listed(names: Mapping[int, str]) -> str:
    return ", ".join(list(names.values())[:5]) + (", ..." if len(names) > 5 else "")


def _segments(name: str) -> list[str]:
    """Return the parts of a dotted name; a table of classes has the name that all generators share."""
    return [CLASS_TABLES[0] if part in CLASS_TABLES else part for part in name.split(".")]


def _is_in(name: str, parts: Iterable[str]) -> bool:
    """Return whether a tensor belongs to a named part: consecutive pieces of its dotted name."""
    dotted = f".{'.'.join(_segments(name))}."
    return any(f".{'.'.join(_segments(part))}." in dotted for part in parts)


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
