"""Attention processors that put pyramid sparse attention in the place of a video transformer's self-attention.

There is one class per architecture of diffusers: they differ in how queries, keys and values are made. Each keeps the processor
that it replaces and calls it while attention is dense, so that dense steps are the untouched model's, bit for bit.

Letters: `b` batch, `n` tokens, `h` heads, `k` channels per head, `d` channels of all heads.
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
        config: How plans are made, except for its text tokens: those are counted from the inputs.
        counter: Says which steps are dense.
        backend: How the operation runs; see `pyramid_sparse_attention`.
        recorder: Takes the statistics of calls; None if they were not asked for.
    """

    config: PSAConfig
    counter: StepCounter
    backend: str = "auto"
    recorder: Recorder | None = None


class PyramidProcessor(abc.ABC):
    """What all processors share: dense calls, the sparse call, and the attributes that diffusers sets on processors."""

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
        density: Tensor | float | None = 1.0
        if settings.counter.is_dense:
            out = self.original(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        else:
            out, density = self.sparse(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        if settings.recorder is not None:
            assert density is not None
            settings.recorder.stop(
                mark, hidden_states.device, step=settings.counter.step, layer=self.layer, density=density
            )
        return out

    @abc.abstractmethod
    def sparse(
        self, attn: Any, hidden_states: Tensor, text: Tensor | None, mask: Tensor | None, tables: Tables | None
    ) -> tuple[Any, Tensor | None]:
        """Return the layer's output, and the density of its plan (a scalar tensor) where calls are recorded."""

    def attend(
        self,
        q: Float[Tensor, "b n h k"],
        k: Float[Tensor, "b n h k"],
        v: Float[Tensor, "b n h k"],
        *,
        text_tokens: int = 0,
        text_at: Literal["start", "end"] = "start",
        key_mask: Bool[Tensor, "b n"] | None = None,
    ) -> tuple[Float[Tensor, "b n d"], Tensor | None]:
        """Return pyramid attention with heads joined, and the plan's density where calls are recorded."""
        # Norms keep float32 under autocast; values have the dtype that dense attention would run in.
        q, k, v = (x.to(v.dtype).transpose(1, 2) for x in (q, k, v))
        config = dataclasses.replace(self.settings.config, text_tokens=text_tokens, text_at=text_at)
        source: dict[str, Any] = {"config": config}
        density = None
        if self.settings.recorder is not None:
            # A separate plan can be looked at; without it planning and attention share one reading of the keys.
            source = {"plan": make_plan(q, k, config, key_mask=key_mask)}
            density = source["plan"].density
        out = pyramid_sparse_attention(q, k, v, key_mask=key_mask, backend=self.settings.backend, **source)
        assert isinstance(out, Tensor)
        return out.transpose(1, 2).flatten(2), density

    @property
    def _attention_backend(self) -> Any:
        # The backend of dense steps; `set_attention_backend` of a model looks for this name.
        return self.original._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, value: Any) -> None:
        self.original._attention_backend = value

    @property
    def _parallel_config(self) -> None:
        # `enable_parallelism` of a model sets this attribute on processors that have it.
        return None

    @_parallel_config.setter
    def _parallel_config(self, value: Any) -> None:
        if value is not None:
            raise ValueError(
                "context parallelism splits the sequence that pyramid attention looks at as a whole; call "
                "remove_pyramid_attention before enable_parallelism, or run without context parallelism"
            )


class WanProcessor(PyramidProcessor):
    """Self-attention of Wan 2.1 and 2.2: video tokens alone."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Tables | None = None,
    ) -> Tensor:
        """Do what the base class does; Wan calls the rotary tables `rotary_emb`."""
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)

    def sparse(
        self, attn: Any, hidden_states: Tensor, text: Tensor | None, mask: Tensor | None, tables: Tables | None
    ) -> tuple[Tensor, Tensor | None]:
        _refuse_mask(mask)
        q, k, v = _project(attn, hidden_states)
        q, k, v = (_split_heads(attn, x) for x in (attn.norm_q(q), attn.norm_k(k), v))
        out, density = self.attend(_rotate(q, tables), _rotate(k, tables), v)
        return _project_out(attn, out), density


class LTXProcessor(PyramidProcessor):
    """Self-attention of LTX: video tokens alone, rotary tables over all heads."""

    def sparse(
        self, attn: Any, hidden_states: Tensor, text: Tensor | None, mask: Tensor | None, tables: Tables | None
    ) -> tuple[Tensor, Tensor | None]:
        _refuse_mask(mask)
        q, k, v = _project(attn, hidden_states)
        q, k = _rotate(attn.norm_q(q), tables), _rotate(attn.norm_k(k), tables)
        out, density = self.attend(*(_split_heads(attn, x) for x in (q, k, v)))
        return _project_out(attn, out), density


class CogVideoXProcessor(PyramidProcessor):
    """Attention of CogVideoX: text before video in one sequence."""

    def sparse(
        self, attn: Any, hidden_states: Tensor, text: Tensor | None, mask: Tensor | None, tables: Tables | None
    ) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        _refuse_mask(mask)
        assert text is not None
        num_text = text.shape[1]
        q, k, v = (_split_heads(attn, x) for x in _project(attn, torch.cat([text, hidden_states], dim=1)))
        q, k = _normalize(attn.norm_q, q), _normalize(attn.norm_k, k)
        tables = _for_heads(tables)
        q, k = (torch.cat([x[:, :num_text], _rotate(x[:, num_text:], tables)], dim=1) for x in (q, k))
        out, density = self.attend(q, k, v, text_tokens=num_text, text_at="start")
        out = _project_out(attn, out)
        return (out[:, num_text:], out[:, :num_text]), density


class HunyuanVideoProcessor(PyramidProcessor):
    """Attention of HunyuanVideo: video before text, in two streams or in one, with a mask over the text's padding."""

    def sparse(
        self, attn: Any, hidden_states: Tensor, text: Tensor | None, mask: Tensor | None, tables: Tables | None
    ) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        assert text is not None
        num_video, num_text, tables = hidden_states.shape[1], text.shape[1], _for_heads(tables)
        if attn.add_q_proj is None:
            joined = torch.cat([hidden_states, text], dim=1)
            q, k, v = (_split_heads(attn, x) for x in _project(attn, joined))
            q, k = _normalize(attn.norm_q, q), _normalize(attn.norm_k, k)
            q, k = (torch.cat([_rotate(x[:, :num_video], tables), x[:, num_video:]], dim=1) for x in (q, k))
        else:
            video = [_split_heads(attn, x) for x in _project(attn, hidden_states)]
            words = [_split_heads(attn, part(text)) for part in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)]
            video = [_rotate(_normalize(attn.norm_q, video[0]), tables), _rotate(_normalize(attn.norm_k, video[1]), tables), video[2]]  # fmt: skip
            words = [_normalize(attn.norm_added_q, words[0]), _normalize(attn.norm_added_k, words[1]), words[2]]
            q, k, v = (torch.cat(pair, dim=1) for pair in zip(video, words, strict=True))
        out, density = self.attend(q, k, v, text_tokens=num_text, text_at="end", key_mask=_key_mask(mask))
        hidden_states, text = out[:, :num_video], out[:, num_video:]
        if getattr(attn, "to_out", None) is not None:
            hidden_states = _project_out(attn, hidden_states)
        if getattr(attn, "to_add_out", None) is not None:
            text = attn.to_add_out(text)
        return (hidden_states, text), density


def _project(attn: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if getattr(attn, "fused_projections", False):
        q, k, v = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        return q, k, v
    return attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)


def _project_out(attn: Any, x: Tensor) -> Tensor:
    # The second module is dropout.
    return attn.to_out[1](attn.to_out[0](x))


def _split_heads(attn: Any, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n h k"]:
    return x.unflatten(2, (attn.heads, -1))


def _normalize(norm: nn.Module | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


def _for_heads(tables: Tables | None) -> Tables | None:
    """Return tables (n, k) with the axes of heads and videos."""
    return None if tables is None else (tables[0][None, :, None], tables[1][None, :, None])


def _rotate(x: Tensor, tables: Tables | None) -> Tensor:
    """Return the rotary embedding of `x`: channels 2i and 2i + 1 turn by one angle, which both hold in the tables."""
    if tables is None:
        return x
    cos, sin = (table[..., 0::2].to(x.device) for table in tables)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


def _key_mask(mask: Tensor | None) -> Bool[Tensor, "b n"] | None:
    """Return a mask over keys from one of shape (b, 1, 1, n); others are refused."""
    if mask is None:
        return None
    if mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[1:3] != (1, 1):
        _refuse_mask(mask)
    return mask[:, 0, 0]


def _refuse_mask(mask: Tensor | None) -> None:
    if mask is not None:
        raise ValueError(
            f"self-attention was given an attention mask of shape {tuple(mask.shape)} and {mask.dtype}, which pyramid "
            "attention cannot follow in this model; leave the mask out, or call remove_pyramid_attention"
        )
