"""Texts -> the features that a generator is conditioned on: the text towers of T5, CLIP and SigLIP through transformers.

Letters: `b` texts, `n` tokens, `c` channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from hiergen.environment import require
from hiergen.files import atomic_path

#: Class of transformers that is the text tower of a kind of network, and whether it was trained on texts padded to full length, all seen.
_TOWERS = {
    "t5": ("T5EncoderModel", False),
    "clip": ("CLIPTextModel", False),
    "clip_text_model": ("CLIPTextModel", False),
    "siglip": ("SiglipTextModel", True),
    "siglip_text_model": ("SiglipTextModel", True),
}


class TextEncoder:
    """A frozen text tower and its tokenizer. What it returns is what a `TextCondition` is made of: `TextCondition(*encoder(texts))`.

    Texts are read in lower case, without white space at their ends. The released program of LlamaGen also cleans captions of the web: it
    takes out addresses, file names, markup and the like.

    Args:
        path: Folder or Hub id of the network with its tokenizer, such as "google/flan-t5-xl" for LlamaGen: T5, CLIP or SigLIP, by its config.
        num_tokens: Most tokens per text; the rest of a longer one is cut off. CLIP and SigLIP have their own limits, 77 and 64.
        device: Device of the network.
        dtype: Number format of the network.

    Attributes:
        num_channels: Channels of the features.

    Raises:
        ImportError: If transformers is not installed.
        OSError: If the network is neither a folder nor in the cache, and cannot be downloaded.
        ValueError: If `num_tokens` is less than 1, or the network is of another kind.

    Source:
        LlamaGen, arXiv:2406.06525: FLAN-T5 XL, 120 tokens, features of 2048 channels; CLIP, arXiv:2103.00020; SigLIP, arXiv:2303.15343.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        num_tokens: int = 120,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if num_tokens < 1:
            raise ValueError(f"num_tokens is {num_tokens}, expected at least 1")
        transformers = require("transformers", "video", "an encoder of texts")
        kind = transformers.AutoConfig.from_pretrained(path).model_type
        if kind not in _TOWERS:
            raise ValueError(f"{str(path)!r} holds a network of kind {kind!r}, expected one of {', '.join(_TOWERS)}")
        tower, self._is_padded = _TOWERS[kind]
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
        network = getattr(transformers, tower).from_pretrained(path, dtype=dtype)
        self.network: Any = network.to(device).eval().requires_grad_(False)
        # T5's positions are relative.
        self.num_tokens = min(num_tokens, getattr(network.config, "max_position_embeddings", num_tokens))
        self.num_channels: int = network.config.hidden_size

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> tuple[Float[Tensor, "b n c"], Bool[Tensor, "b n"]]:
        """Return the last hidden state of each text's tokens, and True where there is a token: shorter texts end in padding.

        Raises:
            TypeError: If one text is given in place of several.
            ValueError: If there is no text.
        """
        check_texts(texts)
        read = self.tokenizer(
            [text.strip().lower() for text in texts],
            max_length=self.num_tokens,
            padding="max_length" if self._is_padded else "longest",
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.network.device)
        mask = read["attention_mask"]
        features: Tensor = self.network(
            input_ids=read["input_ids"], attention_mask=None if self._is_padded else mask
        ).last_hidden_state
        return features, mask.bool()

    @property
    def fingerprint(self) -> str:
        """Digits that change with the network: its config, and the first numbers of each of its tensors."""
        digest = hashlib.sha256(
            f"{self.network.config.to_json_string()} {self.network.dtype} {self.num_tokens}".encode()
        )
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.flatten()[:64].to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def cached(
        self, texts: Sequence[str], folder: str | Path, *, batch_size: int = 64
    ) -> tuple[Float[Tensor, "b n c"], Bool[Tensor, "b n"]]:
        """Return the features of many texts, padded to `num_tokens`, from a file in a folder if they were asked for before.

        Args:
            texts: The texts.
            folder: Folder of the cache, a file for each encoder and list of texts.
            batch_size: Texts per pass.
        """
        key = hashlib.sha256("\0".join((self.fingerprint, *texts)).encode()).hexdigest()[:16]
        path = Path(folder) / f"texts-{key}.safetensors"
        if not path.is_file():
            parts = [self(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
            features = torch.cat([_padded(part, self.num_tokens).cpu() for part, _ in parts])
            mask = torch.cat([_padded(part[..., None], self.num_tokens)[..., 0].cpu() for _, part in parts])
            with atomic_path(path) as temporary:
                save_file({"features": features, "mask": mask}, temporary)
        found = load_file(path)
        return found["features"], found["mask"]


def check_texts(texts: Sequence[str]) -> None:
    """Check a list of texts.

    Raises:
        TypeError: If one text is given in place of several.
        ValueError: If there is no text.
    """
    if isinstance(texts, str):
        raise TypeError(f"texts is the text {texts[:20]!r}, expected a list of texts")
    if not texts:
        raise ValueError("texts is empty, expected at least one text")


def _padded(rows: Tensor, count: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, 0, 0, count - rows.shape[1]))
