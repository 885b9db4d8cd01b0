"""Pyramid sparse attention inside a generator whose tokens lie on one grid.

Letters: `b` batch, `h` heads, `n` tokens, `k` channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from hiergen.kernels.pyramid_attention import PSAConfig, PyramidPlan, make_plan, pyramid_sparse_attention, token_order

#: Called with every plan before it is used, e.g. to note its density.
PlanListener = Callable[[PyramidPlan], None]


class SparseAttention:
    """The attention of all blocks of a model.

    Tokens are put in order once before the first block and back after the last; rotary tables go with them.

    Args:
        config: Settings of the attention, or their JSON form (`hiergen.config.to_json`).
        grid: Frames, rows and columns of the tokens; two sizes are one frame.
        on_plan: Called with every plan.

    Raises:
        ValueError: If the settings are not those of `PSAConfig`, or ask for protected text, of which there is none.
    """

    def __init__(
        self, config: PSAConfig | Mapping[str, Any], grid: tuple[int, ...], *, on_plan: PlanListener | None = None
    ) -> None:
        self.config = config if isinstance(config, PSAConfig) else PSAConfig.from_json(config, where="attention")
        if self.config.text_tokens:
            raise ValueError(
                f"attention has text_tokens {self.config.text_tokens}, expected 0: the sequence holds no text"
            )
        rows, columns = grid[-2:]
        self.order = token_order(self.config.order, (grid[0] if len(grid) == 3 else 1, rows, columns))
        self._on_plan = on_plan

    def __call__(
        self, query: Float[Tensor, "b h n k"], key: Float[Tensor, "b h n k"], value: Float[Tensor, "b h n k"]
    ) -> Float[Tensor, "b h n k"]:
        """Return the attention of ordered tokens, with a plan made for them."""
        plan = make_plan(query, key, self.config)
        if self._on_plan is not None:
            self._on_plan(plan)
        out = pyramid_sparse_attention(query, key, value, plan=plan)
        assert isinstance(out, Tensor)
        return out


def sparse_attention(
    attention: PSAConfig | Mapping[str, Any] | None,
    grids: Sequence[tuple[int, ...]],
    config: Mapping[str, Any],
    *,
    on_plan: PlanListener | None = None,
) -> SparseAttention | None:
    """Return the sparse attention of a `FlowTransformer`, None for dense attention.

    Args:
        attention: Settings of the attention, or their JSON form; None is dense.
        grids: Size of each level in tokens.
        config: Config of the model.
        on_plan: Called with every plan.

    Raises:
        ValueError: If the model has several levels, a mixer or groups in its plan, or the settings are unknown.
    """
    if attention is None:
        return None
    if config["mixer"] is not None:
        raise ValueError("attention is given beside mixer, expected one of them: sparse attention reorders the tokens")
    if len(grids) > 1:
        raise ValueError(f"attention is given for a model of {len(grids)} levels, expected one level")
    if any(step.get("groups", 1) > 1 for step in config["plan"] or ()):
        raise ValueError("attention is given for a model whose plan has groups, expected one of the two")
    return SparseAttention(attention, grids[0], on_plan=on_plan)
