"""Load models and pipelines from a folder or a Hub repository, by the class name that their config states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hiergen.registry import MODEL_CLASSES, PIPELINE_CLASSES, model_class, pipeline_class

#: The class of diffusers' that `hiergen convert ldm-vae` writes and that is loaded as a `KLAutoencoder`.
_AUTOENCODER = "AutoencoderKL"


def from_pretrained(path: str | Path, **options: Any) -> Any:
    """Return the tokenizer, generator or pipeline that `save_pretrained` wrote; an `AutoencoderKL` of diffusers becomes a tokenizer.

    Args:
        path: A folder, or the id of a Hub repository.
        options: Passed on to the class's own `from_pretrained` (`torch_dtype`, `revision`, ...).

    Raises:
        ValueError: If there is no config, or it names a class that is not hiergen's, or the weights are damaged. A config never
            chooses code: only the classes of `hiergen.registry` are loaded.
    """
    name = _class_name(str(path))
    if name in PIPELINE_CLASSES or name in MODEL_CLASSES or name == _AUTOENCODER:
        try:
            if name == _AUTOENCODER:
                return _autoencoder(path, options)
            found = pipeline_class(name) if name in PIPELINE_CLASSES else model_class(name)
            return found.from_pretrained(path, **options)
        except SafetensorError as error:
            raise ValueError(
                f"the weights in {str(path)!r} are damaged ({error}); save or download them again"
            ) from error
    known = ", ".join(sorted({*MODEL_CLASSES, *PIPELINE_CLASSES, _AUTOENCODER}))
    raise ValueError(f"{str(path)!r} holds a {name!r}, which hiergen does not load; it loads {known}")


def _autoencoder(path: str | Path, options: dict[str, Any]) -> Any:
    from diffusers import AutoencoderKL

    from hiergen.tokenizers.kl_autoencoder import KLAutoencoder

    return KLAutoencoder.from_autoencoder(AutoencoderKL.from_pretrained(path, **options))


def _class_name(path: str) -> str:
    for file in ("model_index.json", "config.json"):
        found = Path(path) / file if Path(path).is_dir() else _download(path, file)
        if found is not None and found.is_file():
            try:
                return str(json.loads(found.read_text()).get("_class_name"))
            except (ValueError, AttributeError) as error:
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
