"""The proxy-code term of a tokenizer's training: its decoder learns to predict the ids that another tokenizer gives the same image.

TiTok's first stage: before the decoder learns pixels, it learns MaskGIT-VQGAN's ids. Nothing of the other tokenizer is trained.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.pipelines.loading import from_pretrained
from hiergen.pretrained.weights import Frozen
from hiergen.tokenizers.maskgit_vqgan.model import MaskGITVQ
from hiergen.training.tasks.term_settings import ProxyConfig


class ProxyTerm:
    """The cross-entropy of proxy codes, and the copy of the parts that turn them into pixels.

    Args:
        config: Settings of the term.
        tokenizer: The tokenizer that is trained, which is changed in place.

    Raises:
        ValueError: If the tokenizer has no proxy codes, they are of other sizes, or the target is no `MaskGITVQ`.

    Source:
        TiTok, arXiv:2406.07550.
    """

    def __init__(self, config: ProxyConfig, tokenizer: Any) -> None:
        if not hasattr(tokenizer, "take_proxy"):
            raise ValueError(
                f"proxy is set for a {type(tokenizer).__name__}, which predicts no proxy codes: leave it out, or train a TiTok"
            )
        target = from_pretrained(config.tokenizer)
        if not isinstance(target, MaskGITVQ):
            raise ValueError(
                f"proxy.tokenizer is {config.tokenizer!r}, a {type(target).__name__}, expected a MaskGITVQ"
            )
        tokenizer.take_proxy(target)
        self._target = Frozen(target)

    def __call__(self, images: Tensor, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return "proxy", the mean cross-entropy in nats, and "proxy_accuracy"."""
        with torch.no_grad():
            ids = cast(MaskGITVQ, self._target.on(images.device)).encode(images).levels[0]
        logits = features["proxy_logits"].float()
        accuracy = (logits.detach().argmax(dim=-1) == ids).float().mean()
        return {"proxy": F.cross_entropy(logits.flatten(0, 1), ids.flatten()), "proxy_accuracy": accuracy}
