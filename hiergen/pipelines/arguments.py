"""What callers of the pipelines pass, read and checked: labels, sources of random numbers, counts and kinds of output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hiergen.seeding import Rng, SampleRng

#: A label or several: integers of Python, NumPy or torch, in a sequence, an array or a tensor of one dimension.
Labels = Any
#: A text or several.
Texts = Any
#: A source of random numbers for the batch (`torch.Generator`), a list of one per sample, or a `SampleRng`.
Generators = Any


def read_labels(class_labels: Labels) -> Tensor:
    """Return labels as an int64 tensor `(b,)` on the CPU.

    Raises:
        ValueError: If there is none, one is no integer, or they have more than one dimension.
    """
    values = class_labels
    if isinstance(values, Tensor | np.ndarray):
        if values.ndim > 1:
            raise ValueError(f"class_labels has shape {tuple(values.shape)}, expected a label or one dimension of them")
        values = values.tolist()
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        values = [values]
    labels = [_label(value) for value in values]
    if not labels:
        raise ValueError("class_labels is empty, expected at least one label")
    return torch.tensor(labels, dtype=torch.int64)


def _label(value: Any) -> int:
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
        raise ValueError(f"class_labels holds {value!r} of type {type(value).__name__}, expected integers")
    if not 0 <= int(value) < 2**63:
        raise ValueError(f"class_labels holds {value}, expected 0 to the number of classes less one")
    return int(value)


def read_generators(generator: Generators, count: int, unit: str) -> Rng | None:
    """Return the source of all draws of a call: a list of generators becomes a `SampleRng`.

    Args:
        generator: What the caller passed.
        count: Number of samples that are made.
        unit: What a sample is, for the error.

    Raises:
        ValueError: If it is none of these, or holds another number of generators than there are samples.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    if isinstance(generator, SampleRng):
        found = generator
    else:
        given = list(generator) if isinstance(generator, Sequence) and not isinstance(generator, str | bytes) else None
        wrong = [generator] if given is None else [item for item in given if not isinstance(item, torch.Generator)]
        if wrong:
            raise ValueError(
                f"generator holds {wrong[0]!r} of type {type(wrong[0]).__name__}, "
                f"expected a torch.Generator, or a list of one per {unit}"
            )
        if not given:
            raise ValueError(f"generator is an empty list, expected {count}, one per {unit}")
        found = SampleRng(given)
    if len(found) != count:
        raise ValueError(f"generator holds {len(found)} generators, expected {count}, one per {unit}")
    return found


def check_count(name: str, value: Any) -> int:
    """Return a number of samples.

    Raises:
        ValueError: If it is no integer of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} is {value!r}, expected an integer")
    if value < 1:
        raise ValueError(f"{name} is {value}, expected at least 1")
    return int(value)


def check_output_type(output_type: Any, known: Sequence[str]) -> None:
    """Check a kind of output.

    Raises:
        ValueError: If it is unknown, with all that are known.
    """
    if output_type not in known:
        *first, last = map(repr, known)
        raise ValueError(f"output_type is {output_type!r}, expected {', '.join(first)} or {last}")


def read_texts(name: str, texts: Any) -> list[str]:
    """Return texts as a list.

    Raises:
        ValueError: If there is none, or one is no text.
    """
    found = [texts] if isinstance(texts, str) else list(texts) if isinstance(texts, Iterable) else [texts]
    if not found:
        raise ValueError(f"{name} is empty, expected at least one text")
    for text in found:
        if not isinstance(text, str):
            raise ValueError(f"{name} holds {text!r} of type {type(text).__name__}, expected texts")
    return found
