from __future__ import annotations

import dataclasses
from pathlib import Path

from hiergen.demo.library import Library
from hiergen.demo.pictures import digit_examples
from hiergen.demo.tabs.compare import comparison_table, draw_comparison, first_pair
from hiergen.demo.tabs.reconstruct import reconstruct


def test_two_models_on_one_picture(library) -> None:
    image = digit_examples(32)[0][:1]
    results = {title: reconstruct(library.get(title).tokenizer, image) for title in library.image_tokenizers()}
    lines = comparison_table(results).splitlines()
    assert len(lines) == 2 + sum(len(result.steps) for result in results.values())
    assert lines[2].startswith("| one-dimensional | 1 level | 1 token, 9 bits | ")
    assert lines[9].startswith("| two-dimensional | 3 scales | 21 tokens, 128 numbers | ")
    picture = draw_comparison(results)
    assert picture.width > 500
    assert len(picture.getcolors(maxcolors=2**20)) > 20


def test_the_first_two_know_the_same_data_where_there_are_such(library) -> None:
    names = {"a": ("x.png",), "b": (), "c": ("y.png",), "d": ()}
    entry = library.get("two-dimensional")
    models = {
        name: dataclasses.replace(entry, examples=tuple(Path(file) for file in files)) for name, files in names.items()
    }
    assert first_pair(Library(models)) == ("b", "d")
    del models["d"]
    assert first_pair(Library(models)) == ("a", "b")
