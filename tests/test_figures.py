"""Pictures of texts in chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hiergen.figures import PALETTE, _apart, byte_symbols, save_chunks


def colors(path: Path) -> dict[str, int]:
    """How many pixels have each color of the palette."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    return {
        color: int((pixels == [int(color[k : k + 2], 16) for k in (1, 3, 5)]).all(axis=1).sum()) for color in PALETTE
    }


def test_neighboring_chunks_differ_in_color_and_stages_too(tmp_path: Path) -> None:
    symbols, outer = list("ab cd"), [True, False, True, True, False]
    save_chunks(tmp_path / "one.png", symbols, {"stage 1": outer}, columns=3, title="cost: $5")
    save_chunks(tmp_path / "two.png", symbols, {"stage 1": outer, "stage 2": [True, *[False] * 4]}, columns=3)
    one, two = colors(tmp_path / "one.png"), colors(tmp_path / "two.png")
    # Chunks of two, one and two symbols: three or two symbols of one color against one or two of the other.
    first, second = sorted(count for count in one.values() if count > 50)
    assert 3.2 < second / first < 4.8
    assert sum(count > 50 for count in two.values()) == 3
    assert not list(tmp_path.glob("*.tmp*"))


def test_every_byte_is_one_character() -> None:
    text = "aé\n€".encode() + b"\xff\x00"
    assert byte_symbols(text) == ["a", "é", "·", "↵", "€", "·", "·", "·", "·"]
    assert len(byte_symbols(bytes(range(256)))) == 256


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stages\['inner'\] is of 2 symbols, expected 3, one per symbol"):
        save_chunks(tmp_path / "x.png", list("abc"), {"inner": [True, False]})
    with pytest.raises(ValueError, match="there are 0 symbols and 0 stages, expected some of each"):
        save_chunks(tmp_path / "x.png", [], {})


def test_labels_of_an_axis_keep_apart() -> None:
    assert _apart([9.0, 18.0, 36.0, 72.0, 128.0, 144.0, 640.0, 2048.0], 0.1) == [9, 18, 36, 72, 128, 640, 2048]
    # Five at equal distances are not too near for a quarter of the axis.
    assert _apart([1.0, 2.0, 4.0, 8.0, 16.0], 0.25) == [1, 2, 4, 8, 16]
    assert _apart([16.0], 0.1) == [16]
