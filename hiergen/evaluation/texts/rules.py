"""H-Net with chunks by a fixed rule in place of its router: what the router is compared with. For training and scores, not for generation.

Letters: `b` batch, `n` symbols, `d` channels.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hiergen.generators.sequences.hnet.chunking import Chunks, Router, RouterState
from hiergen.generators.sequences.hnet.model import HNet
from hiergen.generators.sequences.hnet.stages import Stage

#: "router" learns where chunks begin; "every" begins one at every so manieth byte, "spaces" behind white space.
Rule = Literal["router", "every", "spaces"]
_BLANKS = tuple(b" \t\n\r")


class RuledRouter(Router):
    """Begins a chunk where a rule of the bytes says so, with probability 1, so that the smoother and the gradients do nothing.

    Args:
        dim: Channels of the stage; the weights are kept, without use, so that a model is saved as every other.
        rule: "every" or "spaces".
        every: Bytes of a chunk under "every".
    """

    def __init__(self, dim: int, rule: Rule, every: int) -> None:
        super().__init__(dim)
        self.requires_grad_(False)
        self.rule, self.every = rule, every
        self._marks: Tensor | None = None

    def read(self, ids: Int[Tensor, "b n"]) -> None:
        """Take the bytes of the pass that follows."""
        if self.rule == "every":
            self._marks = (torch.arange(ids.shape[1], device=ids.device) % self.every == 0).expand(ids.shape)
            return
        is_blank = torch.isin(ids, torch.tensor(_BLANKS, device=ids.device))
        self._marks = torch.ones_like(is_blank)
        self._marks[:, 1:] = is_blank[:, :-1] & ~is_blank[:, 1:]

    def forward(
        self,
        encoded: Float[Tensor, "b n d"],
        *,
        lengths: Int[Tensor, " b"] | None = None,
        starts: Bool[Tensor, "b n"] | None = None,
        state: RouterState | None = None,
    ) -> Chunks:
        """Return the chunks of the bytes that were read; see `Router`.

        Raises:
            ValueError: If there is a state or padding: a rule is for whole rows.
        """
        if state is not None or lengths is not None:
            raise ValueError("chunks by a rule are for whole rows, expected neither a state nor lengths")
        assert self._marks is not None
        marks = self._marks if starts is None else self._marks | starts
        full = torch.full((len(encoded),), encoded.shape[1], device=encoded.device)
        return Chunks(marks.to(torch.float32), marks, full)


def follow_rule(model: HNet, rule: Rule, *, every: int = 6) -> HNet:
    """Let a model of bytes with one stage of chunks cut them by a rule; return it. "router" leaves it as it is.

    Raises:
        ValueError: If the model has another number of stages of chunks.
    """
    if rule == "router":
        return model
    if len(model.targets) != 1:
        raise ValueError(f"the model has {len(model.targets)} stages of chunks, expected 1 for chunks by a rule")
    stage = cast(Stage, model.stages[0])
    ruled = RuledRouter(stage.router.query.in_features, rule, every)
    ruled.load_state_dict(stage.router.state_dict())
    stage.router = ruled

    def read(module: Any, args: tuple[Tensor, ...]) -> None:
        ruled.read(args[0])

    model.embedding.register_forward_pre_hook(read)
    return model
