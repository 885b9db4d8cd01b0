"""What a run leaves in the config of its model, for the model's card: data and budget."""

from __future__ import annotations

import json
from pathlib import Path, PurePath

import torch

import hiergen
from hiergen.data.codes import INDEX
from hiergen.data.shapes.config import ShapeDataConfig
from hiergen.data.text.config import TextDataConfig
from hiergen.pipelines.card import TrainingFacts
from hiergen.training.config import TrainConfig
from hiergen.training.tasks.base import Task

#: Data that come with the package, by their names as a source.
EMBEDDED = {
    "digits": "scikit-learn's handwritten digits (UCI Optical Recognition of Handwritten Digits, Alpaydin and Kaynak, CC BY 4.0)",
    "emoji": "emoji drawn by Google (noto, Apache-2.0) and Microsoft (fluent-flat, MIT)",
    "topics": "Python's help topics",
    "python": "the sources of Python's standard library",
    "descriptions": "scikit-learn's descriptions of its data sets",
    "moving-digits": "moving handwritten digits made of scikit-learn's (UCI, Alpaydin and Kaynak, CC BY 4.0)",
    "moving-emoji": "moving emoji drawn by Google (noto, Apache-2.0) and Microsoft (fluent-flat, MIT)",
}


def training_facts(config: TrainConfig, task: Task, samples_seen: int) -> TrainingFacts:
    """Return what a run knows of the model that it saves."""
    settings, data, init = config.task, getattr(config.task, "data", None), config.init
    return TrainingFacts(
        preset=getattr(settings, "preset", ""),
        data=_name_cache(getattr(settings, "codes", "")) if data is None else name_source(data.source),
        unit=_unit(data),
        samples=len(task.dataset),
        classes=len(getattr(task.dataset, "classes", ())),
        size=getattr(data, "size", None),
        samples_seen=samples_seen,
        batch_size=config.batch_size,
        seed=config.seed,
        init=PurePath(init).name if init is not None and Path(init).exists() else init,
        lora_rank=config.lora.rank,
        hiergen=hiergen.__version__,
        torch=torch.__version__,
    )


def _unit(data: object) -> str:
    """Return what a sample is, by the settings of the data."""
    if data is None:
        return "encoded sample"
    if isinstance(data, TextDataConfig):
        return "text row"
    return "shape" if isinstance(data, ShapeDataConfig) else "image"


def _name_cache(codes: str) -> str:
    """Return the data that a cache of codes was made of, or else the cache's own name."""
    index = Path(codes) / INDEX
    stored = json.loads(index.read_text()).get("data") if index.is_file() else None
    return stored or name_source(codes)


def name_source(source: str) -> str:
    """Return the name of a source of data as a card has it: of a path the last part alone."""
    kind, colon, place = source.rpartition(":")
    return EMBEDDED.get(source) or f"`{kind}{colon}{PurePath(place).name}`"
