"""Rates in bits, where ids and real numbers have one measure, with the number of tokens beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hiergen.evaluation.images import rate_distortion
from hiergen.evaluation.images.rate_distortion import code_bits, draw_rates


def row(tokens: int, *, bits: float | None = None, numbers: int | None = None) -> dict[str, Any]:
    return {"tokens": tokens, "bits": bits, "numbers": numbers, "metrics": {"psnr": float(tokens), "precision": 1.0}}


def test_ids_and_real_numbers_are_on_one_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        rate_distortion, "save_curves", lambda path, panels, **rest: given.update(panels=panels, **rest)
    )
    ids, numbers = [row(1, bits=9), row(16, bits=144)], [row(1, numbers=9), row(4, numbers=64)]
    draw_rates(tmp_path / "a.png", {"ids": ids, "numbers": numbers})
    assert list(given["panels"]) == ["psnr"]
    assert {name: curve[0] for name, curve in given["panels"]["psnr"].items()} == {
        "ids": [9, 144],
        "numbers": [144, 1024],
    }
    assert given["point_labels"] == {9: "1 token", 144: "1 token or 16 tokens", 1024: "4 tokens"}
    assert given["x_label"] == "bits of the code (a real number counts as 16)"
    draw_rates(tmp_path / "a.png", {"ids": ids})
    assert given["x_label"] == "bits of the code"
    draw_rates(tmp_path / "a.png", {"ids": ids}, rate="tokens")
    assert (given["x_label"], given["point_labels"]) == ("tokens", {})
    assert given["panels"]["psnr"]["ids"][0] == [1, 16]
    assert code_bits(numbers[0]) == 144


def test_the_picture_has_both_sizes_at_its_ticks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []

    def look(figure: Any, path: Path) -> None:
        for axis in figure.axes:
            texts.extend([tick.get_text() for tick in axis.get_xticklabels()])

    monkeypatch.setattr("hiergen.figures._save", look)
    draw_rates(tmp_path / "a.png", {"": [row(1, bits=9), row(2, bits=1800)]})
    assert texts == ["9\n1 token", "1,800\n2 tokens"]
