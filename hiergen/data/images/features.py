"""Features of images on disk, found by the content of the image: a large encoder sees every image once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hiergen.files import atomic_path

#: Images in [-1, 1], `(b, 3, h, w)` -> features of each network, `(b, n, c)`.
Encode = Callable[[Tensor], Sequence[Tensor]]


class FeatureCache:
    """Features of images in `folder`, one file per image; what is not there is computed and kept.

    Args:
        folder: Folder of the cache.
        encode: The encoder.
        source: Fingerprint of the encoder: features of another one are never returned.
    """

    def __init__(self, folder: str | Path, encode: Encode, *, source: str) -> None:
        self._folder = Path(folder)
        self._encode = encode
        self._source = source

    @torch.no_grad()
    def features(self, images: UInt8[Tensor, "b 3 h w"], *, batch_size: int = 32) -> list[Tensor]:
        """Return the features of each network, `(b, n, c)`, on the CPU. Images that agree in every pixel share an entry.

        Raises:
            ValueError: If a file of the cache is damaged; the file is named.
        """
        paths = [self._path(image) for image in images]
        missing = {path: index for index, path in enumerate(paths) if not path.is_file()}
        places = list(missing.values())
        for start in range(0, len(places), batch_size):
            part = places[start : start + batch_size]
            features = [value.cpu() for value in self._encode(images[part].float() / 127.5 - 1)]
            for row, index in enumerate(part):
                tensors = {f"feature_{k}": value[row].contiguous() for k, value in enumerate(features)}
                with atomic_path(paths[index]) as temporary:
                    save_file(tensors, temporary)
        rows = [_load(path) for path in paths]
        return [torch.stack([row[name] for row in rows]) for name in sorted(rows[0])] if rows else []

    def _path(self, image: Tensor) -> Path:
        content = hashlib.sha256(f"{self._source} {tuple(image.shape)} ".encode())
        content.update(image.contiguous().cpu().numpy().tobytes())
        digest = content.hexdigest()
        return self._folder / digest[:2] / f"{digest}.safetensors"


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"the cached features {str(path)!r} are damaged ({error}); delete the file") from error
