"""How a plan is made, and the settings that the authors published for video models, with their defects put right."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from hiergen.checked import Checked
from hiergen.config import from_json
from hiergen.kernels.names import ImportanceName
from hiergen.kernels.pyramid_attention.pooling import POOLS, TailRule

AssignmentMode = Literal["threshold", "quota", "energy"]
OrderName = Literal["gilbert", "tiles", "raster"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfficialRules(Checked):
    """Rules of the official program that its paper does not state; a rule that is a defect has a sound one as default beside it.

    Attributes:
        crossing: Whether the block that crosses a bound belongs to the finer pool ("include", official code) or not
            ("exclude", paper). Threshold mode.
        energy_rule: "start" places a block by the share before it, so that a block with most of the mass is read in full;
            "end" by the share including it, as the official code, which can skip such a block. Energy mode.
        tail: How the pooled keys at a ragged end are made: "exact", or "replicate" as the official code; see `build_pyramid`.
        empty_rows: What a row reads when its quota comes to no whole block, as in short sequences: "best_block" reads its
            best block in full; "nothing" leaves its output zero, as the official code. Quota mode without a causal mask.
        min_full: At least floor(min_full · blocks) + 1 blocks are read at pool 1. Threshold mode; not in the paper.
        epsilon: Added to the bounds before comparing. Threshold mode.
        rounding_tile: Pooled keys that a run of blocks is rounded up to fill: the official kernel's tile. Our kernels fill
            tiles at any count, so a larger value changes plans, not correctness.
    """

    crossing: Literal["include", "exclude"] = "include"
    energy_rule: Literal["start", "end"] = "start"
    tail: TailRule = "exact"
    empty_rows: Literal["best_block", "nothing"] = "best_block"
    min_full: float = 0.06
    epsilon: float = 1e-6
    rounding_tile: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.empty_rows not in ("best_block", "nothing"):
            raise ValueError(f"empty_rows is {self.empty_rows!r}, expected 'best_block' or 'nothing'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PSAConfig(Checked):
    """Settings of pyramid sparse attention.

    Attributes:
        bounds: `(pool, upper bound)` pairs. A bound is a cumulative share of a row: of its score ("threshold", "energy") or of
            its blocks ("quota"). What lies above the last bound is skipped.
        mode: "threshold" keeps, in every row, blocks until their normalized scores add up to the bound; "quota" keeps the same
            number in every row; "energy" is "threshold" with half-open intervals (`energy_rule`), for language models.
        query_block: Queries per block.
        key_block: Keys per block.
        importance: Which estimate of a block's attention mass; see `planning/importance.py`.
        sample_fraction: The "sampled" estimators read one token in this many.
        stride: Stride of the antidiagonal estimator, in tokens.
        similarity: Thresholds for pools 2, 4, 8 of `similarity_cap`; None turns it off.
        sink_blocks: Leading key blocks read in full. Causal plans only.
        text_tokens: Tokens that every query reads in full and whose queries read everything in full.
        text_at: Which end of the sequence they are at.
        order: Token order the video tokens are put in once before the first layer.
        warmup_steps: Sampling steps with dense attention first.
        num_steps: Sampling steps that `warmup_steps` was chosen for.
        rules: Rules of the official program that its paper does not state.
    """

    bounds: tuple[tuple[int, float], ...] = ((1, 0.10), (2, 0.15), (4, 0.15), (8, 0.35))
    mode: AssignmentMode = "quota"
    query_block: int = 128
    key_block: int = 128
    importance: ImportanceName = "pyramid"
    sample_fraction: int = 4
    stride: int = 8
    similarity: tuple[float, float, float] | None = None
    sink_blocks: int = 1
    text_tokens: int = 0
    text_at: Literal["start", "end"] = "start"
    order: OrderName = "gilbert"
    warmup_steps: int = 0
    num_steps: int = 50
    rules: OfficialRules = OfficialRules()

    def __post_init__(self) -> None:
        super().__post_init__()
        for pool, bound in self.bounds:
            if pool not in POOLS:
                raise ValueError(f"bounds holds pool {pool}, expected 1, 2, 4 or 8")
            if not 0 <= bound <= 1:
                raise ValueError(f"bounds gives pool {pool} the bound {bound}, expected a share in [0, 1]")
        if len({pool for pool, _ in self.bounds}) != len(self.bounds):
            raise ValueError(f"bounds is {self.bounds}, expected each pool once")
        if self.mode not in ("threshold", "quota", "energy"):
            raise ValueError(f"mode is {self.mode!r}, expected 'threshold', 'quota' or 'energy'")
        tile = self.rules.rounding_tile
        if not 1 <= tile <= self.key_block:
            raise ValueError(f"rules.rounding_tile is {tile}, expected 1 to key_block = {self.key_block}")

    @classmethod
    def from_json(cls, value: Mapping[str, Any], *, where: str = "PSAConfig") -> PSAConfig:
        """Return the settings that `hiergen.config.to_json` wrote; the form of before, without `rules`, is read too.

        Args:
            value: JSON values by field. The names of `OfficialRules` may stand beside the others, as they once did.
            where: What the settings are called in messages.

        Raises:
            ValueError: If a field is unknown or does not fit, or a rule stands both in `rules` and beside it.
        """
        names = {field.name for field in dataclasses.fields(OfficialRules)}
        beside = {name: value[name] for name in value if name in names}
        if not beside:
            return from_json(cls, value, where=where)
        if "rules" in value:
            raise ValueError(
                f"{where} has 'rules' and beside it {', '.join(map(repr, beside))}, expected one of the two"
            )
        fields = {name: item for name, item in value.items() if name not in names}
        return from_json(cls, {**fields, "rules": beside}, where=where)


def density_of_bounds(bounds: Sequence[tuple[int, float]]) -> float:
    """Return the share of the dense products that quotas compute, before whole blocks are counted."""
    ends = [0.0, *(bound for _, bound in bounds)]
    return sum(max(ends[i + 1] - ends[i], 0.0) / pool for i, (pool, _) in enumerate(bounds))


#: Published settings (arXiv:2512.04025 and its code's YAML). They differ from the official program in four ways: pooled blocks
#: are merged right at every key block size (the official kernel errs below 128), the tail is exact, text is protected where it
#: stands, and importance is estimated from the pooled pyramid, without random draws.
PSA_PRESETS: dict[str, PSAConfig] = {
    "default": PSAConfig(key_block=64),
    "wan2.1-14b-balanced": PSAConfig(
        mode="threshold", bounds=((1, 0.40), (2, 0.50), (4, 0.60), (8, 0.80)), warmup_steps=15
    ),
    "wan2.1-1.3b-balanced": PSAConfig(
        mode="threshold",
        bounds=((1, 0.50), (2, 0.60), (4, 0.70), (8, 0.80)),
        similarity=(0.70, 0.65, 0.60),
        warmup_steps=15,
    ),
    "wan2.1-1.3b-quota": PSAConfig(bounds=((1, 0.05), (2, 0.10), (4, 0.15), (8, 0.25)), key_block=32, warmup_steps=15),
    "wan2.2-a14b-balanced": PSAConfig(
        mode="threshold",
        bounds=((1, 0.50), (2, 0.60), (4, 0.60), (8, 0.80)),
        key_block=32,
        warmup_steps=12,
        num_steps=40,
    ),
    "wan2.2-5b-balanced": PSAConfig(
        mode="threshold", bounds=((1, 0.60), (2, 0.70), (4, 0.70), (8, 0.80)), key_block=32, warmup_steps=15
    ),
    "cogvideox1.5-5b-balanced": PSAConfig(key_block=32, text_tokens=226, warmup_steps=15),
    "cogvideox-5b-balanced": PSAConfig(text_tokens=226, order="raster", warmup_steps=15),
    "cogvideox-5b-4-steps": PSAConfig(
        bounds=((1, 0.05), (2, 0.15), (4, 0.25), (8, 0.50)), text_tokens=226, order="raster", num_steps=4
    ),
    "qwen2.5-vl": PSAConfig(
        mode="energy",
        bounds=((1, 0.70), (2, 0.80), (4, 0.90), (8, 0.90)),
        importance="antidiagonal",
        similarity=(0.75, 0.70, 0.70),
        text_tokens=512,
        text_at="end",
        order="raster",
    ),
}


def psa_preset(name: str) -> PSAConfig:
    """Return published settings by name.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in PSA_PRESETS:
        raise ValueError(f"there is no PSA preset {name!r}, expected one of {', '.join(PSA_PRESETS)}")
    return PSA_PRESETS[name]
