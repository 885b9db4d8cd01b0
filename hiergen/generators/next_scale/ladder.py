"""What `NextScaleAR` asks of a tokenizer's levels."""

from __future__ import annotations

from hiergen.pyramid import LevelSpec


def read_ladder(specs: tuple[LevelSpec, ...]) -> tuple[int, int, tuple[tuple[int, int], ...]]:
    """Return the vocabulary, the channels of a code and the grids of levels that are maps of one codebook."""
    kinds = {(spec.vocab_size, spec.dim) for spec in specs}
    if len(kinds) != 1 or specs[0].vocab_size is None:
        found = [(spec.vocab_size, spec.dim) for spec in specs]
        raise ValueError(
            f"level_specs have vocabularies and channels {found}, expected discrete levels that are alike in both"
        )
    grids = []
    for index, spec in enumerate(specs):
        if spec.grid is None or len(spec.grid) != 2:
            raise ValueError(f"level {index} has the grid {spec.grid}, expected (height, width)")
        grids.append((spec.grid[0], spec.grid[1]))
    return specs[0].vocab_size, specs[0].dim, tuple(grids)
