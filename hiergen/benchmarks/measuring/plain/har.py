"""HAR's sampler the straightforward way, as a baseline: one padded, zeroed cache, and a mask over all of it at every step.

It reads the weights of a `LevelAR` under their official names, so that both run side by side on the same numbers. Not for use
elsewhere: `LevelAR.generate` gives the same ids.

Letters: `b` batch (twice the labels, with guidance), `n` positions of a step, `d` channels, `h` heads, `k` channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.convert.level_ar import to_official
from hiergen.generators.guidance import guide
from hiergen.generators.level_ar.model import LevelAR
from hiergen.generators.level_ar.settings import LevelARSettings
from hiergen.generators.sampling import keep_top_k, keep_top_p


class PlainSampler:
    """Samples from a `LevelAR` with `layout="level"` by a transcription of the published procedure.

    Keys and values lie in tensors of the full length (one more than the tokens, rounded up to a multiple of 8), filled with zeros
    before each batch; every step attends to all slots under a mask, both halves of the batch run to the end, and the draw is
    `torch.multinomial`.

    Args:
        model: Whose weights to use, shared.
        rebuild_tables: Build the mask and the rotary table anew in every layer of every step, as ResTok's tokenizer does; False
            builds them once.

    Source:
        ResTok, arXiv:2601.03955; LlamaGen, arXiv:2406.06525. Written from a description of the official sampler.
    """

    def __init__(self, model: LevelAR, *, rebuild_tables: bool) -> None:
        if model.config["layout"] != "level":
            raise ValueError(f"layout is {model.config['layout']!r}, the plain sampler knows 'level' only")
        self.weights = to_official(model)
        self.num_tokens = model.num_tokens
        self.num_ar_tokens = model.config["num_ar_tokens"]
        self.num_classes = model.config["num_classes"]
        self.num_heads = model.config["num_heads"]
        self.depth = model.config["depth"]
        self.head_dim = model.config["dim"] // self.num_heads
        self.theta = model.config["rope_theta"]
        self.num_slots = -(-(self.num_tokens + 1) // 8) * 8
        self.device = model.device
        self.stored = None if rebuild_tables else (self._mask(), self._rotary())

    @torch.no_grad()
    def generate(self, labels: Tensor, settings: LevelARSettings, *, rng: torch.Generator | None = None) -> Tensor:
        """Return ids `(b, num_tokens)` of class labels `(b,)`; `guidance_interval`, `num_levels`, `use_cache` are not read."""
        conditions = torch.cat((labels, torch.full_like(labels, self.num_classes))) if settings.is_guided else labels
        shape = (self.depth, len(conditions), self.num_heads, self.num_slots, self.head_dim)
        dtype = self.weights["tok_embeddings.weight"].dtype
        cache = [torch.zeros(shape, device=self.device, dtype=dtype) for _ in range(2)]
        ends = [*range(1, self.num_ar_tokens + 1)]
        while ends[-1] < self.num_tokens:
            ends.append(2 * ends[-1])
        ids = torch.zeros(len(labels), 0, dtype=torch.int64, device=self.device)
        for step, end in enumerate(ends):
            x = self._input(ids, conditions, end)
            logits = self._transform(x, torch.arange(ids.shape[1], end, device=self.device), cache).float()
            if settings.is_guided:
                conditional, null = logits.chunk(2)
                logits = guide(conditional, null, settings.scale_at(step / (len(ends) - 1)))
            ids = torch.cat((ids, _draw(logits, settings, rng)), dim=1)
        return ids

    def _input(self, ids: Tensor, conditions: Tensor, end: int) -> Tensor:
        start = ids.shape[1]
        if start == 0:
            return self.weights["cls_embedding.embedding_table.weight"][conditions][:, None]
        previous = 1 if start <= self.num_ar_tokens else start // 2
        read = ids[:, start - previous :].repeat(len(conditions) // len(ids), 1)
        tokens = self.weights["tok_embeddings.weight"][read]
        if end - start == previous:
            return tokens
        first = 0 if start == self.num_ar_tokens else start // 2 - 1
        special = self.weights["spe_tok_embeddings.special_embeddings.weight"][first : first + end - start - previous]
        return torch.cat((tokens, special.expand(len(conditions), -1, -1)), dim=1)

    def _transform(self, x: Tensor, positions: Tensor, cache: list[Tensor]) -> Tensor:
        w = self.weights
        for layer in range(self.depth):
            mask, rotary = self.stored or (self._mask(), self._rotary())
            name = f"layers.{layer}."
            qkv = F.linear(_norm(x, w[name + "attention_norm.weight"]), w[name + "attention.wqkv.weight"])
            query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
            query, key = (_rotate(part, rotary[positions]) for part in (query, key))
            cache[0][layer, :, :, positions] = key
            cache[1][layer, :, :, positions] = value
            attended = F.scaled_dot_product_attention(
                query, cache[0][layer], cache[1][layer], attn_mask=mask[positions]
            )
            x = x + F.linear(attended.transpose(1, 2).flatten(2), w[name + "attention.wo.weight"])
            y = _norm(x, w[name + "ffn_norm.weight"])
            gate, up = (F.linear(y, w[name + f"feed_forward.{part}.weight"]) for part in ("w1", "w3"))
            x = x + F.linear(F.silu(gate) * up, w[name + "feed_forward.w2.weight"])
        return F.linear(_norm(x, w["norm.weight"]), w["output.weight"])

    def _mask(self) -> Tensor:
        """Return which slots each position may see, `(slots, slots)`; a slot past the tokens is seen by none before it."""
        groups = torch.arange(self.num_slots)
        start, group = self.num_ar_tokens, self.num_ar_tokens
        while start < self.num_tokens:
            groups[start : 2 * start] = group
            start, group = 2 * start, group + 1
        groups[self.num_tokens :] = self.num_slots
        return (groups[:, None] >= groups[None, :]).to(self.device)

    def _rotary(self) -> Tensor:
        """Return the rotations of all slots as complex numbers, `(slots, k / 2)`."""
        exponents = torch.arange(0, self.head_dim, 2, device=self.device).double() / self.head_dim
        angles = torch.outer(torch.arange(self.num_slots, device=self.device).double(), self.theta**-exponents)
        return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * weight


def _rotate(x: Tensor, rotary: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rotary).flatten(-2).to(x.dtype)


def _draw(logits: Tensor, settings: LevelARSettings, rng: torch.Generator | None) -> Tensor:
    logits = logits / max(settings.temperature, 1e-5)
    logits = keep_top_k(logits, settings.top_k) if settings.top_k else logits
    logits = keep_top_p(logits, settings.top_p) if settings.top_p < 1 else logits
    probabilities = logits.softmax(dim=-1)
    if settings.greedy:
        return probabilities.argmax(dim=-1)
    drawn = torch.multinomial(probabilities.flatten(0, 1), 1, generator=rng)
    return drawn.reshape(logits.shape[:2])
