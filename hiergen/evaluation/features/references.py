"""What a set of images is compared with: the statistics of a reference, computed once and cached, or read from a file.

Files are ADM's: an .npz with `mu` and `sigma` (pool features), `mu_s` and `sigma_s` (spatial features, for sFID), and `arr_0`, uint8
images `(n, h, w, 3)`, for what needs the features themselves (precision, recall, kernel distance).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hiergen.config import fingerprint, to_json
from hiergen.data.config import EMBEDDED, DataConfig
from hiergen.data.dataset import Dataset
from hiergen.data.files.npz_files import open_npz, read_array
from hiergen.data.images.in_memory import ImageSet
from hiergen.data.images.on_disk import PictureSet
from hiergen.data.sources import open_images, open_pictures
from hiergen.evaluation.features.extractors import Extractor
from hiergen.evaluation.parts import gather, is_complete, run_parts
from hiergen.evaluation.protocol import RESIZE_RULE, ROUNDING_RULES, process_state, quantize
from hiergen.evaluation.settings import PassConfig, Rounding
from hiergen.files import atomic_path, check_writable
from hiergen.metrics.fidelity import check_count
from hiergen.metrics.frechet import Moments

#: Sources that are in memory already, or are read clip by clip.
IN_MEMORY = (*EMBEDDED, "clips")


@dataclasses.dataclass(frozen=True)
class Reference:
    """Statistics of the images that others are compared with.

    Attributes:
        pool: Moments of the pool features.
        spatial: Moments of the spatial features, where there are any.
        features: The pool features themselves `(n, d)`, where they are known.
        about: Data, count, fingerprint and rules, as JSON values.
    """

    pool: Moments
    spatial: Moments | None
    features: Tensor | None
    about: dict[str, Any]


def open_reference(
    source: str | DataConfig,
    extractor: Extractor,
    *,
    rounding: Rounding,
    passes: PassConfig,
    cache: str | Path,
    device: torch.device,
    images: Dataset | None = None,
) -> Reference:
    """Return the statistics of a reference, computed unless they were seen before; errors come before any long work.

    Args:
        source: ADM-style .npz file, or data.
        extractor: Feature extractor on which distances are measured.
        rounding: Rule that rounds pixels to bytes.
        passes: How the work is cut.
        cache: Folder of the statistics of data that were seen before.
        device: Device of the extractor.
        images: The data, where they are open already.

    Raises:
        ValueError: If the file or the data do not fit.
    """
    if isinstance(source, DataConfig):
        images = open_evaluated(source) if images is None else images
        check_count(len(images), "the reference")
        folder = check_writable(Path(cache).expanduser(), option="--cache")
        return _of_images(source, images, extractor, rounding=rounding, passes=passes, cache=folder, device=device)
    return _with_features(read_npz(source, extractor), source, extractor, passes=passes, device=device)


def open_evaluated(config: DataConfig) -> ImageSet | PictureSet:
    """Return the images of a config as an evaluation reads them: unchanged, and all of them.

    Raises:
        ValueError: If they would be changed at random, or cannot be opened. In training the next picture stands in for one that
            cannot be read; here it would be counted twice, so whatever cannot be read is an error.
    """
    _check_unchanged(config)
    return open_images(config, is_strict=True)


def _check_unchanged(config: DataConfig) -> None:
    if config.crop != "center" or config.flip:
        raise ValueError("an evaluation reads its images unchanged: data.crop must be 'center' and data.flip False")


def check_source(source: str | DataConfig) -> int | None:
    """Check that data, or a file of statistics, can be opened, without reading pictures: what is wrong shows at once.

    Returns:
        How many pictures there are, where that is known already.

    Raises:
        ValueError: If it cannot, or an evaluation may not read data as the config says.
    """
    if isinstance(source, str):
        with open_npz(source) as file:
            _check_keys(file, source)
        return None
    _check_unchanged(source)
    if source.size < 1:
        raise ValueError(f"data.size is {source.size}, expected at least 1")
    is_embedded = source.source.partition(":")[0] in IN_MEMORY
    return None if is_embedded else len(open_pictures(source).labels)


def read_npz(path: str | Path, extractor: Extractor) -> Reference:
    """Return the statistics in an ADM-style .npz file, without looking at its images.

    Raises:
        ValueError: If the file is missing, no .npz, has no `mu` and `sigma`, or they are of another extractor or not finite.
    """
    with open_npz(path) as file:
        _check_keys(file, path)
        pool = _moments(file, path, ("mu", "sigma"), extractor.dim)
        spatial = None
        if extractor.spatial_dim and "mu_s" in file and "sigma_s" in file:
            spatial = _moments(file, path, ("mu_s", "sigma_s"), extractor.spatial_dim)
    about = {
        "source": str(path),
        "kind": "statistics file",
        "count": "as many as its maker took",
        "images_inside": _shape(path),
    }
    return Reference(pool, spatial, None, about)


def _check_keys(file: Any, path: str | Path) -> None:
    if "mu" not in file or "sigma" not in file:
        raise ValueError(
            f"{str(path)!r} holds {', '.join(file.files) or 'nothing'}, expected reference statistics `mu` and `sigma` "
            "(sample files with `arr_0` alone are given as --samples)"
        )


def write_npz(path: str | Path, reference: Reference) -> None:
    """Write statistics as an ADM-style .npz file (without images)."""
    arrays = {"mu": reference.pool.mean, "sigma": reference.pool.covariance}
    if reference.spatial is not None:
        arrays |= {"mu_s": reference.spatial.mean, "sigma_s": reference.spatial.covariance}
    with atomic_path(path) as temporary:
        np.savez(temporary, allow_pickle=False, **arrays)


def read_batch(images: Dataset, indices: Sequence[int]) -> Tensor:
    """Return images by index, `(b, 3, h, w)` in [-1, 1], without augmentation.

    Raises:
        ValueError: If one cannot be read; it is named.
    """
    if isinstance(images, ImageSet):
        batch = images.images[list(indices)]
    else:
        batch = images.batch([(i, 0) for i in indices], seed=0)["image"]
    return batch.expand(-1, 3, -1, -1) if batch.shape[1] == 1 else batch


def _of_images(
    config: DataConfig,
    images: Dataset,
    extractor: Extractor,
    *,
    rounding: Rounding,
    passes: PassConfig,
    cache: Path,
    device: torch.device,
) -> Reference:
    identity = {
        "data": images.fingerprint,
        "size": config.size,
        "resize": RESIZE_RULE,
        "rounding": rounding,
        "extractor": extractor.fingerprint,
        "count": len(images),
        **({"exact": passes.exact} if passes.exact else {}),
    }
    digits = fingerprint(identity)
    about = {
        "source": config.source,
        "split": config.split,
        "kind": "images",
        "fingerprint": digits,
        "rules": {"resize": RESIZE_RULE, "rounding": ROUNDING_RULES[rounding]},
        **identity,
    }
    folder = cache / digits

    def compute(_: range, batch: Tensor) -> dict[str, Tensor]:
        found = extractor(quantize(batch.to(device), rounding))
        return {name: value for name, value in found.items() if name != "logits"}

    file = folder / "statistics.safetensors"
    if not is_complete(file):
        parts = run_parts(
            folder / "parts",
            identity,
            len(images),
            compute,
            passes=passes,
            what="reference",
            load=lambda indices: read_batch(images, indices),
        )
        if parts is not None:
            _store(file, {name: parts.read(name) for name in parts.names()}, about)
    return _load(file, {**about, "config": to_json(config)})


def _store(file: Path, features: dict[str, Tensor], about: dict[str, Any]) -> None:
    tensors = {"features": features["pool"]}
    for name, values in features.items():
        moments = Moments.of(values)
        tensors[f"{name}.mean"] = torch.from_numpy(moments.mean)
        tensors[f"{name}.covariance"] = torch.from_numpy(moments.covariance)
    with atomic_path(file) as temporary:
        save_file(tensors, temporary, metadata={"about": json.dumps(about)})


def _load(file: Path, about: dict[str, Any]) -> Reference:
    process_state().wait_for_everyone()
    with safe_open(file, framework="pt") as stored:
        features = stored.get_tensor("features")
        found = {
            name: Moments(
                stored.get_tensor(f"{name}.mean").numpy(),
                stored.get_tensor(f"{name}.covariance").numpy(),
                len(features),
            )
            for name in ("pool", "spatial")
            if f"{name}.mean" in stored.keys()  # noqa: SIM118  (a safe_open is no dictionary)
        }
    return Reference(found["pool"], found.get("spatial"), features, about)


def _with_features(
    read: Reference, path: str, extractor: Extractor, *, passes: PassConfig, device: torch.device
) -> Reference:
    if read.about["images_inside"] is None:
        return read
    with open_npz(path) as file:
        images = torch.from_numpy(read_array(file, "arr_0", path)).permute(0, 3, 1, 2)
    found = gather({"pool": extractor(part.to(device))["pool"].cpu()} for part in images.split(passes.at_once))
    return dataclasses.replace(read, features=found["pool"])


def _shape(path: str | Path) -> list[int] | None:
    """Return the shape of the images inside an .npz; None where there are none."""
    with open_npz(path) as file:
        if "arr_0" not in file:
            return None
        return check_npz_images(path, read_array(file, "arr_0", path))


def check_npz_images(path: str | Path, images: np.ndarray) -> list[int]:
    """Return the shape of `arr_0` if it is one of images.

    Raises:
        ValueError: If it is not uint8 `(n, h, w, 3)`.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            f"arr_0 of {str(path)!r} is {images.dtype} of shape {tuple(images.shape)}, expected uint8 images (n, h, w, 3)"
        )
    return list(images.shape)


def _moments(file: Any, path: str | Path, names: tuple[str, str], dim: int) -> Moments:
    mean, covariance = (read_array(file, name, path) for name in names)
    what = f"{names[0]} and {names[1]} of {str(path)!r}"
    if mean.dtype.kind not in "fiu" or covariance.dtype.kind not in "fiu":
        raise ValueError(f"{what} are {mean.dtype} and {covariance.dtype}, expected real numbers")
    if mean.shape != (dim,) or covariance.shape != (dim, dim):
        raise ValueError(
            f"{what} have shapes {mean.shape} and {covariance.shape}, the extractor gives {dim} channels: "
            "the statistics are of another extractor"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{what} hold NaN or infinity")
    wide = covariance.astype(np.float64)
    scale = float(np.abs(wide).max(initial=0.0))
    if (np.diag(wide) < 0).any() or np.abs(wide - wide.T).max(initial=0.0) > 1e-3 * scale:
        raise ValueError(
            f"{names[1]} of {str(path)!r} is not symmetric or has a negative variance: it is no covariance"
        )
    return Moments(mean.astype(np.float64), wide, 0)
