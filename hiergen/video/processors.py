"""Attention processors that put pyramid sparse attention in the place of a video transformer's self-attention.

One class an architecture of diffusers: what differs is how queries, keys and values are made. Each keeps the processor that
it replaces and calls it while attention is dense, so that dense steps are the untouched model's, bit for bit.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hiergen.kernels.pyramid_attention import PSAConfig, make_plan, pyramid_sparse_attention
from hiergen.video.statistics import Recorder
from hiergen.video.steps import StepCounter

Processor = Any
Tables = tuple[Tensor, Tensor]


@dataclasses.dataclass
class AttentionSettings:
    """What all processors of a model share.

    Attributes:
        config: How plans are made. Text tokens are counted from the inputs, not taken from it.
        counter: Says which steps are dense.
        backend: See `pyramid_sparse_attention`.
        recorder: Where calls are recorded, if they are.
    """

    config: PSAConfig
    counter: StepCounter
    backend: str = "auto"
    recorder: Recorder | None = None


class PyramidProcessor(abc.ABC):
    """Base of the processors: dense calls, the sparse call, and what diffusers sets on processors."""

    def __init__(self, original: Processor, layer: int, settings: AttentionSettings) -> None:
        self.original = original
        self.layer = layer
        self.settings = settings

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Tables | None = None,
    ) -> Any:
        """Return what the replaced processor returns, by dense attention in dense steps and sparse in the others."""
        settings = self.settings
        mark = None if settings.recorder is None else settings.recorder.start(hidden_states.device)
        density: Tensor | float = 1.0
        if settings.counter.is_dense:
            out = self.original(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        else:
            out, density = self.sparse(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        if settings.recorder is not None:
            settings.recorder.stop(
                mark, hidden_states.device, step=settings.counter.step, layer=self.layer, density=density
            )
        return out

    @abc.abstractmethod
    def sparse(
        self, attn: Any, hidden_states: Tensor, text: Tensor | None, mask: Tensor | None, tables: Tables | None
    ) -> tuple[Any, Tensor]:
        """Return the layer's output, and the density of its plan (a scalar tensor)."""

    def attend(
        self,
        q: Float[Tensor, "b n h k"],
        k: Float[Tensor, "b n h k"],
        v: Float[Tensor, "b n h k"],
        *,
        text_tokens: int = 0,
        text_at: Literal["start", "end"] = "start",
        key_mask: Bool[Tensor, "b n"] | None = None,
    ) -> tuple[Float[Tensor, "b n d"], Tensor]:
        """Return pyramid attention with heads joined, and the plan's density."""
        # Norms keep float32 under autocast; values have the dtype that dense attention would run in.
        q, k, v = (x.to(v.dtype).transpose(1, 2) for x in (q, k, v))
        config = dataclasses.replace(self.settings.config, text_tokens=text_tokens, text_at=text_at)
        plan = make_plan(q, k, config, key_mask=key_mask)
        out = pyramid_sparse_attention(q, k, v, plan=plan, key_mask=key_mask, backend=self.settings.backend)
        assert isinstance(out, Tensor)
        return out.transpose(1, 2).flatten(2), plan.density

    @property
    def _attention_backend(self) -> Any:
        # Of dense steps; `set_attention_backend` of a model looks for this name.
        return self.original._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, value: Any) -> None:
        self.original._attention_backend = value

    @property
    def _parallel_config(self) -> None:
        # `enable_parallelism` of a model sets it where it exists.
        return None

    @_parallel_config.setter
    def _parallel_config(self, value: Any) -> None:
        if value is not None:
            raise ValueError(
                "context parallelism splits the sequence that pyramid attention looks at as a whole; call "
                "remove_pyramid_attention before enable_parallelism, or run without context parallelism"
            )


class WanProcessor(PyramidProcessor):
    """Self-attention of Wan 2.1 and 2.2."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Tables | None = None,
    ) -> Tensor:
        """As the base, under the name that Wan gives the tables."""
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)

    def sparse(
        self, attn: Any, hidden_states: Tensor, text: Tensor | None, mask: Tensor | None, tables: Tables | None
    ) -> tuple[Tensor, Tensor]:
        _refuse_mask(mask)
        q, k, v = _project(attn, hidden_states)
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (attn.norm_q(q), attn.norm_k(k), v))
        if tables is not None:
            q, k = _rotate_pairs(q, tables), _rotate_pairs(k, tables)
        out, density = self.attend(q, k, v)
        return attn.to_out[1](attn.to_out[0](out)), density


def _project(attn: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if getattr(attn, "fused_projections", False):
        q, k, v = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        return q, k, v
    return attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)


def _rotate_pairs(x: Float[Tensor, "b n h k"], tables: Tables) -> Float[Tensor, "b n h k"]:
    """Return Wan's rotary embedding: channels 2i and 2i + 1 turn by the angle that both of their table entries hold."""
    cos, sin = tables[0][..., 0::2], tables[1][..., 1::2]
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


def _refuse_mask(mask: Tensor | None) -> None:
    if mask is not None:
        raise ValueError(
            f"self-attention was given an attention mask of shape {tuple(mask.shape)}, which pyramid attention cannot "
            "follow in this model; leave the mask out, or call remove_pyramid_attention"
        )
