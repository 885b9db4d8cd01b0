"""Tiny video transformers with random weights, and settings whose blocks fit them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from hiergen.kernels import PSAConfig

Grid = tuple[int, int, int]
BLOCKS: dict[str, Any] = {"query_block": 16, "key_block": 16, "rounding_tile": 16}
#: Everything at pool 1: dense attention by another way.
FULL = PSAConfig(bounds=((1, 1.0),), **BLOCKS)
SPARSE = PSAConfig(bounds=((1, 0.2), (2, 0.3), (4, 0.4), (8, 0.6)), **BLOCKS)


@dataclasses.dataclass(frozen=True)
class Case:
    """One architecture.

    Attributes:
        model: Makes a model of two layers, always the same.
        inputs: Makes the arguments of a forward pass; `grid` counts tokens.
        dispatch: Module and name of the attention function that its processors call, and the layout of its heads.
        text_at: Where text tokens stand among the keys.
        text_tokens: How many.
    """

    model: Callable[..., Any]
    inputs: Callable[..., dict[str, Any]]
    dispatch: tuple[str, str]
    text_at: str = "start"
    text_tokens: int = 0


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def steps(timestep: float, batch: int, tokens: int | None) -> torch.Tensor:
    """Return a timestep for every video, or for every token: the first ones' is 0, as of given frames."""
    if tokens is None:
        return torch.full((batch,), timestep)
    return torch.full((batch, tokens), timestep) * (torch.arange(tokens) >= tokens // 3)


def tiny_wan(**changes: Any) -> WanTransformer3DModel:
    torch.manual_seed(0)
    settings = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
        "text_dim": 8, "freq_dim": 8, "ffn_dim": 16, "num_layers": 2, "rope_max_seq_len": 32,
    } | changes  # fmt: skip
    return WanTransformer3DModel(**settings).eval()


def wan_inputs(
    grid: Grid = (3, 5, 4), *, batch: int = 1, timestep: float = 900.0, by_token: bool = False
) -> dict[str, Any]:
    frames, rows, columns = grid
    return {
        "hidden_states": noise(batch, 4, frames, 2 * rows, 2 * columns),
        "timestep": steps(timestep, batch, frames * rows * columns if by_token else None),
        "encoder_hidden_states": noise(batch, 7, 8, seed=2),
    }


CASES = {
    "wan": Case(tiny_wan, wan_inputs, ("diffusers.models.transformers.transformer_wan.dispatch_attention_fn", "bshd")),
}


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture
def wan() -> Case:
    return CASES["wan"]


@pytest.fixture
def full() -> PSAConfig:
    return FULL


@pytest.fixture
def sparse() -> PSAConfig:
    return SPARSE
