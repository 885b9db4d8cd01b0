"""Texts -> the features that a generator is conditioned on: T5's encoder through transformers.

Letters: `b` texts, `n` tokens, `c` channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hiergen.environment import require


class TextEncoder:
    """A frozen T5 encoder and its tokenizer. What it returns is what a `TextCondition` is made of: `TextCondition(*encoder(texts))`.

    Texts are read in lower case, without white space at their ends. The released program of LlamaGen also cleans captions of the web: it
    takes out addresses, file names, markup and the like.

    Args:
        path: Folder or Hub id of the network with its tokenizer, "google/flan-t5-xl" for LlamaGen.
        num_tokens: Most tokens per text; the rest of a longer one is cut off.
        device: Device of the network.
        dtype: Number format of the network.

    Raises:
        ImportError: If transformers is not installed.
        OSError: If the network is neither a folder nor in the cache, and cannot be downloaded.
        ValueError: If `num_tokens` is less than 1.

    Source:
        LlamaGen, arXiv:2406.06525: FLAN-T5 XL, 120 tokens, features of 2048 channels.
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
        self.num_tokens = num_tokens
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
        network = transformers.T5EncoderModel.from_pretrained(path, dtype=dtype)
        self.network: Any = network.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> tuple[Float[Tensor, "b n c"], Bool[Tensor, "b n"]]:
        """Return the last hidden state of each text's tokens, and True where there is a token: shorter texts end in padding.

        Raises:
            TypeError: If one text is given in place of several.
            ValueError: If there is no text.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts is the text {texts[:20]!r}, expected a list of texts")
        if not texts:
            raise ValueError("texts is empty, expected at least one text")
        read = self.tokenizer(
            [text.strip().lower() for text in texts],
            max_length=self.num_tokens,
            padding="longest",
            truncation=True,
            return_tensors="pt",
        ).to(self.network.device)
        features: Tensor = self.network(input_ids=read["input_ids"], attention_mask=read["attention_mask"])[0]
        return features, read["attention_mask"].bool()
