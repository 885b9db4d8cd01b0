"""Pyramid sparse attention under a name in transformers' registry of attention functions, for video understanding.

Any model that looks its attention up there can use it: `attn_implementation="hiergen_psa"`. The causal prefill is sparse, in
one piece or in chunks, with a cached prefix, with grouped-query heads, with padding on either side. Everything else that a
model asks for runs through PyTorch's dense attention: decoding token by token, attention that is not causal (vision towers,
cross-attention), sliding windows, packed sequences and static caches.

Letters: `b` batch, `h` query heads, `g` key heads, `q` queries, `n` keys, `k` channels per head.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import Tensor, nn

from hiergen.kernels.pyramid_attention import PSAConfig, psa_preset, pyramid_sparse_attention
from hiergen.video.apply import check_backend

logger = logging.getLogger(__name__)

#: Arguments of attention functions that change the scores, which pyramid attention does not do.
_CHANGES_SCORES = ("softcap", "position_bias", "s_aux")


def register_pyramid_attention(
    preset: PSAConfig | str = "qwen2.5-vl", *, name: str = "hiergen_psa", backend: str = "auto"
) -> None:
    """Make pyramid attention known to transformers under a name.

    Settings belong to the name: models that need other settings use another name. Registering a name again replaces the
    settings of every model that uses it.

    Args:
        preset: Settings or a preset's name. `warmup_steps` and `order` are not used here.
        name: What to pass as `attn_implementation` or to `model.set_attn_implementation`.
        backend: How the operation runs; see `pyramid_sparse_attention`.

    Raises:
        ValueError: If the preset or backend does not exist, or the name is one of transformers' own.
        ImportError: If transformers is not installed.
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ImportError as error:
        raise ImportError('register_pyramid_attention needs transformers: pip install "hiergen[video]"') from error
    config = psa_preset(preset) if isinstance(preset, str) else preset
    check_backend(backend)
    known = AttentionInterface().get(name)
    if name == "eager" or "|" in name or (known is not None and getattr(known, "func", None) is not attention_forward):
        raise ValueError(f"name is {name!r}, which transformers gives to its own attention; choose another")
    AttentionInterface.register(name, functools.partial(attention_forward, config=config, backend=backend))
    AttentionMaskInterface.register(name, attention_mask)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    *,
    config: PSAConfig,
    backend: str = "auto",
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return attention as transformers calls for it: (b, h, q, k) queries and (b, g, n, k) keys to (b, q, h, k).

    Args:
        attention_mask: None (causal, the queries are the last of the keys), (b, n) True for real keys, or what dense
            attention takes.
        config: How plans are made.
        backend: How the operation runs.

    Raises:
        ValueError: If dropout or a change of the scores is asked for in a prefill.
    """
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    is_prefill = is_causal and query.shape[2] > 1 and (attention_mask is None or attention_mask.dim() == 2)
    if not is_prefill:
        if query.shape[2] > 1:
            _log_dense("attention that is not causal" if attention_mask is None else "a mask beyond padding")
        return _dense(module, query, key, value, attention_mask, dropout, scaling, is_causal, kwargs)
    changed = [argument for argument in _CHANGES_SCORES if kwargs.get(argument) is not None]
    if changed or dropout:
        what = ", ".join(changed) if changed else f"dropout={dropout}"
        raise ValueError(
            f"{type(module).__name__} asks for {what}, which pyramid attention cannot do; use attn_implementation='sdpa' or 'eager'"
        )
    # The plan is made without gradient and without draws, so recomputation under checkpointing makes the same one.
    out = pyramid_sparse_attention(
        query, key, value, config=config, is_causal=True, key_offset=key.shape[2] - query.shape[2],
        key_mask=attention_mask, scale=scaling, backend=backend,
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out.transpose(1, 2).contiguous(), None


def attention_mask(
    *,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """Return the mask that `attention_forward` takes: None or (b, n) for a causal prefill, dense attention's own elsewhere."""
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    # A static cache also holds places for later keys (and counts on the device): queries are not the last of its keys.
    is_static = isinstance(q_offset, Tensor) or q_offset + q_length != kv_offset + kv_length
    is_plain = mask_function is None or mask_function is causal_mask_function
    if q_length == 1 or is_static or not is_plain:
        if is_static or (q_length > 1 and is_plain):
            kwargs["allow_is_causal_skip"] = False
        return sdpa_mask(
            q_length=q_length, kv_length=kv_length, q_offset=q_offset, kv_offset=kv_offset,
            mask_function=mask_function or causal_mask_function, attention_mask=attention_mask, **kwargs,
        )  # fmt: skip
    if attention_mask is None:
        return None
    real = attention_mask[:, -kv_length:].bool()
    return None if not torch.compiler.is_compiling() and bool(real.all()) else real


def _dense(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    is_causal: bool,
    kwargs: dict[str, Any],
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if mask is not None and mask.dim() == 2:
        mask = mask[:, None, None]
    return sdpa_attention_forward(
        module, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
    )


@functools.lru_cache(maxsize=8)
def _log_dense(why: str) -> None:
    if not torch.compiler.is_compiling():
        logger.info("dense attention instead of pyramid attention where a model asks for %s", why)
