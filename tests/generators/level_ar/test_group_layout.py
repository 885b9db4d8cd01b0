from __future__ import annotations

import pytest

from hiergen.generators.level_ar.group_layout import GroupLayout, level_layout, token_layout


def written(layout: GroupLayout) -> list[str]:
    """Each step as `c`, `t` and `s` inputs with their numbers."""
    letters = {"condition": "c", "token": "t", "special": "s"}
    return [
        " ".join(
            f"{letters[part.kind]}{row}" if part.kind != "condition" else "c"
            for part in step.segments
            for row in range(part.start, part.end)
        )
        for step in layout.steps
    ]


def test_level_layouts_by_hand() -> None:
    assert written(level_layout(16, 4)) == ["c", "t0", "t1", "t2", "t3 s0 s1 s2", "t4 t5 t6 t7 s3 s4 s5 s6"]
    assert written(level_layout(8, 2)) == ["c", "t0", "t1 s0", "t2 t3 s1 s2"]
    assert written(level_layout(8, 1)) == ["c", "t0", "t1 s0", "t2 t3 s1 s2"]
    assert written(level_layout(4, 4)) == written(token_layout(4)) == ["c", "t0", "t1", "t2"]


def test_published_layout() -> None:
    layout = level_layout(128, 4)
    assert len(layout.steps) == 9
    assert layout.mask.sizes == (1, 1, 1, 1, 4, 8, 16, 32, 64)
    assert layout.num_special_tokens == 63
    assert layout.steps[-1].segments[0].end == 64
    assert all(sum(part.end - part.start for part in s.segments) == s.end - s.start for s in layout.steps)


def test_neighboring_segments_are_joined() -> None:
    assert [(part.kind, part.start, part.end) for part in level_layout(16, 4).segments] == [
        ("condition", 0, 1),
        ("token", 0, 4),
        ("special", 0, 3),
        ("token", 4, 8),
        ("special", 3, 7),
    ]
    assert len(token_layout(5).segments) == 2


def test_prefix() -> None:
    assert level_layout(16, 4).prefix(5).num_tokens == 8


@pytest.mark.parametrize(("num_tokens", "num_ar_tokens"), [(24, 8), (12, 4), (10, 4), (2, 4), (8, 0)])
def test_lengths_that_doubling_cannot_reach(num_tokens: int, num_ar_tokens: int) -> None:
    with pytest.raises(ValueError, match=rf"hold {num_tokens} tokens, expected num_ar_tokens \({num_ar_tokens}"):
        level_layout(num_tokens, num_ar_tokens)
