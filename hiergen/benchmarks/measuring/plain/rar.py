"""RAR's sampler the straightforward way, as a baseline: every step embeds all tokens again, and joins keys and values to the earlier ones.

It reads the weights of a `RandomOrderAR` under their official names, so that both run side by side on the same numbers. Not for use
elsewhere: `RandomOrderAR.generate` gives the same ids.

Letters: `b` batch (twice the labels), `n` new positions of a step, `d` channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.convert.one_dimensional.rar import to_official
from hiergen.generators.random_order.model import RandomOrderAR, RandomOrderARSettings
from hiergen.generators.sampling import truncate

#: Positions in front of the tokens: the cls token and the class.
_FRONT = 2


class PlainSampler:
    """Samples from a `RandomOrderAR` by a transcription of the published procedure.

    The sums of tokens and positions are made anew for the whole sequence at every step, keys and values grow by joining, both halves of
    the batch run with any guidance scale, and the draw is `torch.multinomial`.

    Args:
        model: Whose weights to use, shared but for the table of embeddings.

    Source:
        RAR, arXiv:2411.00776. Written from a description of the official sampler.
    """

    def __init__(self, model: RandomOrderAR) -> None:
        self.weights = {name: value.to(model.device) for name, value in to_official(model).items()}
        self.depth, self.num_heads = model.config["depth"], model.config["num_heads"]
        self.num_tokens, self.num_classes = model.num_tokens, model.config["num_classes"]
        self.vocab_size = self.weights["lm_head.bias"].shape[0]

    @torch.no_grad()
    def generate(
        self, labels: Tensor, settings: RandomOrderARSettings, *, rng: torch.Generator | None = None
    ) -> Tensor:
        """Return ids `(b, n)` of class labels; `greedy`, `use_cache` and `official_draws` are not read."""
        # The program draws for dropped labels, with probability 0.
        torch.rand(len(labels), generator=rng, device=labels.device)
        ids = labels.new_empty(len(labels), 0)
        rows = self.vocab_size + 1 + torch.cat((labels, torch.full_like(labels, self.num_classes)))
        cache: list[tuple[Tensor, Tensor] | None] = [None] * self.depth
        for step in range(self.num_tokens):
            x = self._embed(torch.cat((ids, ids)), rows)
            logits = self._logits(x if step == 0 else x[:, -1:], rows, cache).float()
            conditional, null = logits.chunk(2)
            guided = settings.guide(conditional, null, step, self.num_tokens)
            drawn = torch.multinomial(truncate(guided, settings).softmax(dim=-1), 1, generator=rng)
            ids = torch.cat((ids, drawn), dim=1)
        return ids

    def _embed(self, ids: Tensor, rows: Tensor) -> Tensor:
        """Return the inputs of all positions up to the newest token, in raster order."""
        w, end = self.weights, _FRONT + ids.shape[1]
        table = w["embeddings.weight"]
        x = torch.cat((w["cls_token"].expand(len(ids), -1, -1), table[rows][:, None], table[ids]), dim=1)
        x = x + w["pos_embed"][:, :end]
        # Each but the cls token is told the place of the token behind it.
        x[:, 1:] += w["target_aware_pos_embed"][:, _FRONT : end + 1]
        return x

    def _logits(self, x: Tensor, rows: Tensor, cache: list[tuple[Tensor, Tensor] | None]) -> Tensor:
        """Return the logits of the newest position, `(b, v)`."""
        w, earlier = self.weights, cache[0]
        start = 0 if earlier is None else earlier[0].shape[2]
        steps = w["timesteps_embeddings"][:, start : start + x.shape[1]]
        condition = F.silu(w["embeddings.weight"][rows][:, None] + steps)
        for index in range(self.depth):
            name = f"blocks.{index}."
            parts = self._linear(condition, f"{name}adaLN_modulation.1").chunk(6, dim=-1)
            shift1, scale1, gate1, shift2, scale2, gate2 = parts
            normed = self._norm(x, f"{name}norm1") * (1 + scale1) + shift1
            attended, cache[index] = self._attention(normed, f"{name}attn.", cache[index])
            x = x + gate1 * attended
            normed = self._norm(x, f"{name}norm2") * (1 + scale2) + shift2
            x = x + gate2 * self._linear(F.gelu(self._linear(normed, f"{name}mlp.fc1")), f"{name}mlp.fc2")
        scale, shift = self._linear(condition, "adaln_before_head.adaLN_modulation.1").chunk(2, dim=-1)
        x = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
        return self._linear(x[:, -1], "lm_head")

    def _attention(
        self, x: Tensor, name: str, earlier: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        qkv = self._linear(x, f"{name}qkv").unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query, key = self._norm(query, f"{name}q_norm"), self._norm(key, f"{name}k_norm")
        if earlier is not None:
            key, value = torch.cat((earlier[0], key), dim=2), torch.cat((earlier[1], value), dim=2)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=earlier is None)
        return self._linear(attended.transpose(1, 2).flatten(2), f"{name}proj"), (key, value)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps=1e-6)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])
