"""The classes of hiergen by name, and the presets of every family: configurations with the paper they come from.

Preset names are `<family>-<size>-<tokens>[.<training>]`. A name read from a file never chooses code: classes come from the tables of
this module, which also make them public as `hiergen.<name>`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from hiergen.config import nearest

Kind = Literal["tokenizer", "generator"]


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named configuration.

    Attributes:
        model: Class name, a key of `hiergen.registry.MODEL_CLASSES`.
        config: Arguments of the class's constructor.
        source: Paper and table, or why the size was chosen.
    """

    model: str
    config: dict[str, Any]
    source: str


#: Every model class that may be built from a name or a saved config, and the module that holds it.
MODEL_CLASSES: dict[str, str] = {
    "ResTok": "hiergen.tokenizers.restok.model",
    "PyramidVAE": "hiergen.tokenizers.pyramid_vae.model",
    "HieraTok": "hiergen.tokenizers.hieratok.model",
    "TiTok": "hiergen.tokenizers.titok.model",
    "FlexTok": "hiergen.tokenizers.flextok.model",
    "MaskGITVQ": "hiergen.tokenizers.maskgit_vqgan.model",
    "KLAutoencoder": "hiergen.tokenizers.kl_autoencoder.model",
    "MultiScaleVQ": "hiergen.tokenizers.multiscale_vq.model",
    "VQAutoencoder": "hiergen.tokenizers.vq_autoencoder.model",
    "PyramidTokenizer": "hiergen.tokenizers.pyramid.model",
    "SuperResolution": "hiergen.tokenizers.super_resolution.model",
    "FrameTokenizer": "hiergen.tokenizers.videos.frames",
    "PatchComponents": "hiergen.tokenizers.videos.patch_components",
    "LevelAR": "hiergen.generators.level_ar.model",
    "NextScaleAR": "hiergen.generators.next_scale.model",
    "FlowTransformer": "hiergen.generators.flow.model",
    "MaskedAR": "hiergen.generators.masked.model",
    "MaskedIds": "hiergen.generators.masked.ids.model",
    "RandomOrderAR": "hiergen.generators.random_order.model",
    "BlockTransformer": "hiergen.generators.sequences.block.model",
    "ByteWordTransformer": "hiergen.generators.sequences.byte_word.model",
    "HNet": "hiergen.generators.sequences.hnet.model",
    "MaskedCascade": "hiergen.generators.masked.cascade",
    "ImageEncoder": "hiergen.pretrained.image_encoder",
}

#: Every pipeline class that may be loaded by name, and the module that holds it.
PIPELINE_CLASSES: dict[str, str] = {
    "ClassToImagePipeline": "hiergen.pipelines.image",
    "TextToImagePipeline": "hiergen.pipelines.image",
    "ClassToShapePipeline": "hiergen.pipelines.shape",
    "ImageToShapePipeline": "hiergen.pipelines.shape",
    "ClassToVideoPipeline": "hiergen.pipelines.video",
}


def model_class(name: str) -> type[Any]:
    """Return a model class by its name.

    Raises:
        ValueError: If the name is not in `MODEL_CLASSES`.
    """
    return _class("model", name, MODEL_CLASSES)


def pipeline_class(name: str) -> type[Any]:
    """Return a pipeline class by its name.

    Raises:
        ValueError: If the name is not in `PIPELINE_CLASSES`.
    """
    return _class("pipeline", name, PIPELINE_CLASSES)


def _class(what: str, name: str, table: Mapping[str, str]) -> type[Any]:
    if name not in table:
        raise ValueError(f"unknown {what} class {name!r}{nearest(name, table)}")
    return getattr(importlib.import_module(table[name]), name)


def presets(kind: Kind | None = None) -> dict[str, Preset]:
    """Return all presets of one kind, or of both, by name."""
    return {name: preset for k in ([kind] if kind else get_args(Kind)) for name, preset in preset_table(k).items()}


@functools.cache
def preset_table(kind: Kind) -> dict[str, Preset]:
    """Return the presets of a kind: those of every `presets.py` in its folder, and what was registered."""
    root = Path(__file__).parent
    files = sorted((root / f"{kind}s").rglob("presets.py"))
    names = [".".join(("hiergen", *file.relative_to(root).with_suffix("").parts)) for file in files]
    return {name: preset for module in names for name, preset in importlib.import_module(module).PRESETS.items()}


def list_presets(pattern: str = "*", *, kind: Kind | None = None) -> list[str]:
    """Return the sorted names of the presets that match a shell pattern, e.g. `"restok*"`."""
    return sorted(fnmatch.filter(presets(kind), pattern))


def register(model: type[Any], kind: Kind, named: Mapping[str, Preset]) -> None:
    """Make a model class of your own, and presets of it, known by name to recipes, to `create` and to `from_pretrained`.

    Call it where the class is defined, so that importing that module is all it takes. Nothing read from a file ever calls it.

    Args:
        model: A `Tokenizer` or a `Generator`.
        kind: Which of the two it is.
        named: Presets of the class by name.

    Raises:
        ValueError: If a name is that of a class or preset of hiergen, or a preset is of another class.
    """
    name = model.__name__
    if MODEL_CLASSES.get(name, "").startswith("hiergen."):
        raise ValueError(f"the model class {name!r} is taken by {MODEL_CLASSES[name]}; choose another name")
    known = presets()
    for preset_name, preset in named.items():
        if preset.model != name:
            raise ValueError(f"preset {preset_name!r} is of {preset.model!r}, expected {name!r}")
        if preset_name in known and known[preset_name].model != name:
            raise ValueError(f"the preset {preset_name!r} is taken by {known[preset_name].model}; choose another name")
    MODEL_CLASSES[name] = model.__module__
    preset_table(kind).update(named)


def get_preset(name: str) -> Preset:
    """Return a preset by name.

    Raises:
        ValueError: If there is no preset of that name; the nearest names are given, or what to do with a folder.
    """
    table = presets()
    if name not in table:
        hint = "; it is a folder: --init starts from its weights" if Path(name).is_dir() else nearest(name, table)
        raise ValueError(f"unknown preset {name!r}{hint}")
    return table[name]


def create(name: str, **overrides: Any) -> Any:
    """Return a model with random weights from a preset; `overrides` replace entries of its config.

    Raises:
        ValueError: If the preset is unknown, or an override is no argument of its class.
    """
    preset = get_preset(name)
    kind = model_class(preset.model)
    known = [argument for argument in inspect.signature(kind.__init__).parameters if argument != "self"]
    for key in overrides:
        if key not in known:
            raise ValueError(f"{preset.model} has no argument {key!r} to override in {name!r}{nearest(key, known)}")
    return kind(**{**preset.config, **overrides})
