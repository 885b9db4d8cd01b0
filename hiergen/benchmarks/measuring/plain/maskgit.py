"""TiTok's MaskGIT sampler the straightforward way, as a baseline: with and without the class are two passes, and attention is written out.

It reads the weights of a `MaskedIds` under their official names, so that both run side by side on the same numbers. Not for use
elsewhere: `MaskedIds.generate` gives the same ids.

Letters: `b` batch, `n` tokens, `d` channels, `v` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.convert.one_dimensional.maskgit import to_official
from hiergen.generators.masked.ids.model import MaskedIds
from hiergen.generators.masked.ids.settings import MaskedIdsSettings


class PlainSampler:
    """Samples from a `MaskedIds` by a transcription of the published procedure.

    Args:
        model: Whose weights to use, shared but for the table of embeddings.

    Source:
        TiTok, arXiv:2406.07550. Written from a description of the official sampler.
    """

    def __init__(self, model: MaskedIds) -> None:
        self.weights = {name: value.to(model.device) for name, value in to_official(model).items()}
        self.num_tokens, self.vocab_size = model.num_tokens, model.vocab_size
        self.num_classes, self.num_heads = model.config["num_classes"], model.config["num_heads"]
        self.depth = model.config["depth"]
        self.transform = self._bert if model.config["blocks"] == "post_norm" else self._uvit

    @torch.no_grad()
    def generate(self, labels: Tensor, settings: MaskedIdsSettings, *, rng: torch.Generator | None = None) -> Tensor:
        """Return ids `(b, n)` of class labels; `official_draws` is not read."""
        ids = torch.full((len(labels), self.num_tokens), self.vocab_size, device=labels.device)
        for step in range(settings.num_steps):
            hidden, left = ids == self.vocab_size, 1 - (step + 1) / settings.num_steps
            logits = self._guided(ids, labels, settings, step, rng)
            if settings.anneal_softmax:
                logits = logits / (0.5 + 0.8 * left)
            noise = settings.temperature * left
            new = (logits + noise * _gumbel(logits.shape, rng, labels.device)).argmax(dim=-1)
            new = torch.where(hidden, new, ids)
            confidence = torch.where(hidden, logits.gather(2, new[..., None])[..., 0], math.inf)
            confidence = confidence + noise * _gumbel(confidence.shape, rng, labels.device)
            if step + 1 == settings.num_steps:
                return new
            # The number is the first sample's; reading it makes a GPU wait, as in the program.
            count = max(1, min(int(hidden[0].sum()) - 1, settings.num_hidden(step, self.num_tokens)))
            threshold = confidence.sort(dim=1).values[:, count - 1 : count]
            ids = torch.where(confidence <= threshold, self.vocab_size, new)
        return ids

    def _guided(
        self, ids: Tensor, labels: Tensor, settings: MaskedIdsSettings, step: int, rng: torch.Generator | None
    ) -> Tensor:
        # Each pass draws for dropped labels first, with probability 0 or 1.
        torch.rand(len(ids), generator=rng, device=ids.device)
        conditional = self._logits(ids, labels)
        is_power = settings.guidance_schedule == "power_cosine"
        if not is_power and settings.scale_at(step, settings.num_steps) == 1:
            return conditional
        torch.rand(len(ids), generator=rng, device=ids.device)
        null = self._logits(ids, torch.full_like(labels, self.num_classes))
        return settings.guide(conditional, null, step, settings.num_steps)

    def _logits(self, ids: Tensor, labels: Tensor) -> Tensor:
        return self.transform(torch.cat((self.vocab_size + 1 + labels[:, None], ids), dim=1)).float()

    def _bert(self, rows: Tensor) -> Tensor:
        w, table = self.weights, "model.embeddings"
        x = w[f"{table}.word_embeddings.weight"][rows] + w[f"{table}.token_type_embeddings.weight"][0]
        x = self._norm(x + w[f"{table}.position_embeddings.weight"], f"{table}.LayerNorm", 1e-12)
        for layer in range(self.depth):
            name = f"model.encoder.layer.{layer}"
            parts = [self._linear(x, f"{name}.attention.self.{part}") for part in ("query", "key", "value")]
            attended = self._linear(self._attend(parts), f"{name}.attention.output.dense")
            x = self._norm(x + attended, f"{name}.attention.output.LayerNorm", 1e-12)
            hidden = F.gelu(self._linear(x, f"{name}.intermediate.dense"))
            x = self._norm(x + self._linear(hidden, f"{name}.output.dense"), f"{name}.output.LayerNorm", 1e-12)
        return self._linear(x[:, 1:], "model.lm_head")

    def _uvit(self, rows: Tensor) -> Tensor:
        x, kept = self.weights["embeddings.weight"][rows] + self.weights["pos_embed"], []
        for index in range(self.depth // 2):
            x = self._block(x, f"in_blocks.{index}")
            kept.append(x)
        x = self._block(x, "mid_block")
        for index in range(self.depth // 2):
            name = f"out_blocks.{index}"
            x = self._block(self._linear(torch.cat((x, kept.pop()), dim=-1), f"{name}.skip_linear"), name)
        return self._linear(self._norm(x, "norm", 1e-5)[:, 1:], "lm_head")

    def _block(self, x: Tensor, name: str) -> Tensor:
        parts = self._linear(self._norm(x, f"{name}.norm1", 1e-5), f"{name}.attn.qkv").chunk(3, dim=-1)
        x = x + self._linear(self._attend(parts), f"{name}.attn.proj")
        hidden = F.gelu(self._linear(self._norm(x, f"{name}.norm2", 1e-5), f"{name}.mlp.fc1"))
        return x + self._linear(hidden, f"{name}.mlp.fc2")

    def _attend(self, parts: Sequence[Tensor]) -> Tensor:
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        scores = (query.float() @ key.float().mT / math.sqrt(query.shape[-1])).softmax(dim=-1)
        return (scores @ value.float()).to(value.dtype).transpose(1, 2).flatten(2)

    def _norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps=eps)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        # The fused projection of the blocks with skips has no bias.
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))


def _gumbel(shape: torch.Size, rng: torch.Generator | None, device: torch.device) -> Tensor:
    uniform = torch.rand(shape, generator=rng, device=device)
    return -torch.log(torch.clamp(-torch.log(torch.clamp(uniform, min=1e-20)), min=1e-20))
