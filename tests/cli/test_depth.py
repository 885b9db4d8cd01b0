"""`hiergen convert recursive|ladder` and `hiergen info NAME --plan`."""

import pytest
from diffusers.utils import logging

import hiergen
from hiergen.__main__ import main
from hiergen.registry import create


@pytest.fixture(autouse=True)
def bars():
    """Verbs turn diffusers' bars off; what runs afterwards has them again."""
    yield
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "trained"
    create("har-tiny", dim=32, num_heads=2, ffn_dim=32).save_pretrained(folder)
    return str(folder)


def test_a_model_is_made_smaller_and_its_steps_are_drawn(trained, tmp_path, capsys) -> None:
    out = str(tmp_path / "small")
    assert main(["convert", "recursive", trained, out, "--loops", "2", "--rank", "2"]) == 0
    made, before = hiergen.from_pretrained(out), hiergen.from_pretrained(trained)
    assert made.num_parameters() < before.num_parameters()
    printed = capsys.readouterr().out
    share = f"{made.num_parameters() / before.num_parameters():.0%}"
    assert f"LevelAR of {made.num_parameters():,} parameters, {share} of {before.num_parameters():,}" in printed
    assert f"next: hiergen train RECIPE --init {out}" in printed
    assert main(["info", out, "--plan"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["LevelAR.blocks", "2", "blocks,", "4", "steps:", "0", "1", "0", "1"]
    assert lines[3] == ["1", "1", "rank", "2,", "vectors", "all", "exit"]
    assert lines[4] == ["2", "0", "rank", "2,", "vectors", "all", "-"]
    assert main(["info", trained, "--plan"]) == 0
    assert capsys.readouterr().out.split() == ["LevelAR.blocks", "4", "blocks,", "4", "steps:", "0", "1", "2", "3"]
    assert main(["convert", "ladder", trained, str(tmp_path / "ladder"), "--last", "2"]) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "ladder"), "--plan"]) == 0
    assert "all but the branch before" in capsys.readouterr().out.splitlines()[-1]


def test_a_part_of_a_pipeline_is_converted(tmp_path, capsys) -> None:
    out = str(tmp_path / "small")
    assert main(["convert", "recursive", "digits-1d", out, "--start", "stepwise"]) == 0
    assert type(hiergen.from_pretrained(out)).__name__ == "LevelAR"
    assert (
        main(
            [
                "convert",
                "recursive",
                "digits-1d",
                out + "2",
                "--part",
                "tokenizer",
                "--stacks",
                "decoder",
                "--loops",
                "3",
            ]
        )
        == 0
    )
    assert hiergen.from_pretrained(out + "2").config["decoder_depth"] == 1


def test_what_has_no_steps_says_so(capsys) -> None:
    assert main(["info", "maskgit-vq-tiny", "--plan"]) == 1
    assert "MaskGITVQ has no stack of transformer blocks" in capsys.readouterr().err
    assert main(["convert", "recursiv", "x", "y"]) == 1
    assert "recursive" in capsys.readouterr().err
