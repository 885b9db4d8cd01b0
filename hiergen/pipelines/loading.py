"""Load models and pipelines from a folder or a Hub repository, by the class name that their config states."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hiergen.config import nearest
from hiergen.environment import choose_device, choose_dtype
from hiergen.pretrained.hub import fetch
from hiergen.pretrained.official import OFFICIAL, by_repository, of_preset
from hiergen.pretrained.packaged import CONFIGS, packaged_models
from hiergen.registry import MODEL_CLASSES, PIPELINE_CLASSES, model_class, pipeline_class, presets

#: The class of diffusers' that `hiergen convert ldm-vae` writes and that is loaded as a `KLAutoencoder`.
_AUTOENCODER = "AutoencoderKL"


def from_pretrained(
    path: str | Path, *, dtype: Any = None, compile: bool | Mapping[str, Any] = False, **options: Any
) -> Any:
    """Return the tokenizer, generator or pipeline that `save_pretrained` wrote; an `AutoencoderKL` of diffusers becomes a tokenizer.

    Official weights are downloaded and converted at their first use; a generator comes as a pipeline with its tokenizer.

    Args:
        path: A folder with a saved model, the name of a model that comes with the package ("digits-1d") or of official weights ("vq-16.in1k",
            `hiergen info` lists them), or the id `owner/name` of a Hub repository.
        dtype: A `torch.dtype` of the weights; None is float32. "auto" is bfloat16 where the GPU that is there, or else the processor,
            has its products, and float32 elsewhere; a line says which. For a pipeline also a dict of the parts' names, with "default"
            for the others.
        compile: Whether to compile what generating and decoding repeat (`compile_sampling`, `compile_decoding`), or arguments of
            `torch.compile`.
        options: Passed on to the class's own `from_pretrained` (`revision`, `variant`, ...).

    Diffusers' bars ("Loading pipeline components...") are not shown.

    Raises:
        TypeError: If `dtype` is none of these; diffusers would take float32 with a warning.
        ValueError: If there is no config, or it names a class that is not hiergen's, or the weights are missing, damaged or no
            safetensors. A config never chooses code: only the classes of `hiergen.registry` are loaded, and no pickle is.
    """
    path = resolve(str(path))
    if dtype is not None:
        options["dtype"] = _dtype(dtype)
    with _without_bars():
        loaded = _load(path, options)
    if compile:
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        _compile(model, dict(compile) if isinstance(compile, Mapping) else {})
    return loaded


def _dtype(dtype: Any) -> Any:
    """Return what diffusers takes for a `dtype` of `from_pretrained`.

    Raises:
        TypeError: If it is no dtype.
    """
    import torch

    if isinstance(dtype, Mapping):
        return {name: _dtype(value) for name, value in dtype.items()}
    if isinstance(dtype, str) and dtype == "auto":
        return choose_dtype(choose_device("auto"))
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype is {dtype!r} of type {type(dtype).__name__}, expected a torch.dtype or 'auto'")
    return dtype


def _load(path: str, options: dict[str, Any]) -> Any:
    if path in OFFICIAL and not Path(path).is_dir():
        return _official(path, options)
    stored = _config(path)
    name = str(stored.get("_class_name"))
    # Otherwise diffusers takes a pickle where there are no safetensors.
    options = {"use_safetensors": True, **options}
    if name in PIPELINE_CLASSES or name in MODEL_CLASSES or name == _AUTOENCODER:
        try:
            if name == _AUTOENCODER:
                return _autoencoder(path, options)
            if name in PIPELINE_CLASSES:
                found = pipeline_class(name)
                _check_components(str(path), stored, found)
                return found.from_pretrained(path, **options)
            return _model(model_class(name), path, options)
        except (OSError, KeyError, TypeError) as error:
            raise ValueError(f"{str(path)!r} cannot be loaded: {error}") from error
        except SafetensorError as error:
            raise ValueError(
                f"the weights in {str(path)!r} are damaged ({error}); save or download them again"
            ) from error
    known = ", ".join(sorted({*MODEL_CLASSES, *PIPELINE_CLASSES, _AUTOENCODER}))
    raise ValueError(f"{str(path)!r} holds a {name!r}, which hiergen does not load; it loads {known}")


def _compile(model: Any, options: dict[str, Any]) -> None:
    """Compile a pipeline, a generator's sampling or a tokenizer's decoding."""
    names = ("compile_sampling", "compile_decoding")
    method = next((getattr(model, name) for name in names if hasattr(model, name)), None)
    (method or model.compile)(**options)


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Silence diffusers' bars: models are loaded in the middle of programs that have their own, and into log files."""
    from diffusers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def resolve(path: str) -> str:
    """Return the folder of a packaged model by name, and the name of official weights by their repository; anything else as it is.

    Nothing is downloaded, and of what is no such name only an id `owner/name` asks the Hub later.

    Raises:
        ValueError: If it is none of these, with the nearest names.
    """
    packaged = {folder.name: str(folder) for folder in packaged_models()}
    # A folder of that name without a model, such as a user's pictures in "emoji", does not hide the packaged one.
    if Path(path).is_dir() and (path not in packaged or any((Path(path) / file).is_file() for file in CONFIGS)):
        return path
    if (path := by_repository(path)) in OFFICIAL:
        return path
    if "/" in path:
        owner, _, name = path.partition("/")
        # The Hub has no other ids. A neighbor on the disk says that a folder was meant: nobody waits for the Hub to deny it.
        if owner in ("", ".", "..", "~") or not name or "/" in name or Path(owner).is_dir():
            raise ValueError(f"the folder {path!r} does not exist")
        return path
    if path not in packaged:
        known = presets()
        if trained := of_preset(path):
            hint = f"; it is a preset, whose weights are {', '.join(map(repr, trained))}"
        elif path in known:
            hint = f"; it is a preset without weights: use hiergen.create({path!r})"
        else:
            hint = nearest(path, {*packaged, *OFFICIAL, *known})
        raise ValueError(f"{path!r} is neither a folder nor a packaged model nor a repository 'owner/name'{hint}")
    return packaged[path]


def _official(name: str, options: dict[str, Any]) -> Any:
    """Return official weights: a tokenizer by itself, a generator in a pipeline with the tokenizer that it is paired with."""
    row = OFFICIAL[name]
    model = from_pretrained(fetch(name), **options)
    if row.tokenizer is None:
        return model
    tokenizer = from_pretrained(row.tokenizer, **{**options, **row.tokenizer_config})
    return pipeline_class(row.pipeline)(tokenizer=tokenizer, generator=model)


def _model(kind: Any, path: str | Path, options: dict[str, Any]) -> Any:
    """Return a model, all of it stored: diffusers only warns of weights that are missing, and leaves them random."""
    try:
        loaded, info = kind.from_pretrained(path, **{**options, "output_loading_info": True})
    except (ValueError, RuntimeError) as error:
        if "expected shape" not in str(error) and "size mismatch" not in str(error):
            raise
        raise ValueError(f"the weights in {str(path)!r} do not fit the config beside them: {error}") from error
    if info["missing_keys"]:
        raise ValueError(f"the weights in {str(path)!r} lack {', '.join(sorted(info['missing_keys']))}")
    return (loaded, info) if options.get("output_loading_info") else loaded


def _autoencoder(path: str | Path, options: dict[str, Any]) -> Any:
    from diffusers import AutoencoderKL

    from hiergen.tokenizers.kl_autoencoder.model import KLAutoencoder

    return KLAutoencoder.from_autoencoder(AutoencoderKL.from_pretrained(path, **options))


def _check_components(path: str, stored: dict[str, Any], pipeline: type[Any]) -> None:
    """Raise a ValueError unless each component of a stored pipeline is one that it has, of a class that is known."""
    known = set(inspect.signature(pipeline.__init__).parameters)
    for name, value in stored.items():
        if name.startswith("_"):
            continue
        if name not in known:
            raise ValueError(f"{path!r} names a component {name!r}, which a {pipeline.__name__} does not have")
        library, kind = value if isinstance(value, list) and len(value) == 2 else (None, value)
        if isinstance(value, list) and str(MODEL_CLASSES.get(str(kind))).partition(".")[0] != library:
            raise ValueError(f"{path!r} names {value!r} as its {name}, which hiergen does not load")


def _config(path: str) -> dict[str, Any]:
    for file in CONFIGS:
        found = Path(path) / file if Path(path).is_dir() else _download(path, file)
        if found is not None and found.is_file():
            try:
                stored = json.loads(found.read_text())
                if not isinstance(stored, dict):
                    raise ValueError(f"it holds a {type(stored).__name__}, expected an object")
                return stored
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{str(found)!r} is not a model's config: {error}") from error
    raise ValueError(f"{path!r} holds neither model_index.json nor config.json: it is no saved model or pipeline")


def _download(repository: str, file: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, file))
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"{repository!r} is neither a folder nor a repository in the local cache, and the Hub cannot be reached"
        ) from error
    except EntryNotFoundError:
        return None
    except (HFValidationError, HfHubHTTPError) as error:
        raise ValueError(f"{repository!r} is neither a folder nor a repository that can be read: {error}") from error
