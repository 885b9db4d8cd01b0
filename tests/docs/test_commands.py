"""Every command that a page shows is understood: its program exists, and takes these options with these values.

The blocks of the guides are run whole, by test_guides.py.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import tyro

from hiergen.__main__ import VERBS, main
from hiergen.cli.bench import BENCHMARKS
from hiergen.cli.convert import FAMILIES
from hiergen.cli.evaluate import KINDS
from hiergen.cli.machine.completion import SHELLS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page
    for folder in (
        "",
        "docs",
        "docs/guides",
        "docs/guides/extending",
        "docs/guides/generating",
        "docs/results",
        "docs/decisions",
        "tokenizers",
        "generators",
        "eval",
        "demos",
        "hiergen/video",
        "hiergen/kernels/pyramid_attention",
    )
    for page in ROOT.glob(f"{folder}/*.md".lstrip("/"))
    if page.name not in ("CHANGELOG.md", "log.md")
)
SHOWN = re.compile(r"`([^`]+)`")
#: Letters that stand for a number.
NUMBERS = {"N": "2"}
#: Named by themselves, as in "see `hiergen bench psa`".
NAMED = {"bench": BENCHMARKS, "evaluate": KINDS, "convert": FAMILIES, "completion": SHELLS}


class UnderstoodError(Exception):
    """Raised in place of doing what a command says."""


def lines(page: Path) -> list[str]:
    """Return what a page shows as code: lines of its blocks, and spans in its text."""
    text = page.read_text()
    blocks = [] if "guides" in page.parts else re.findall(r"^```(?:bash)?\n(.*?)^```$", text, re.M | re.S)
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    spans = [" ".join(span.split()) for span in SHOWN.findall(rest)]
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()] + spans


def commands() -> list[str]:
    """Return the commands of all pages, each once, as words that a program gets."""
    found = set()
    for page in PAGES:
        for line in lines(page):
            line = line.strip().removeprefix(".venv/bin/").removeprefix("OMP_NUM_THREADS=1 ")
            if re.match(r"(hiergen [a-z]|python \S+\.py|accelerate launch \S+\.py|torchrun )", line):
                words = shlex.split(line, comments=True)
                # A form, as in "[MODEL ...]", is no command.
                if not any(set(word) & set("[|") or word == "..." for word in words):
                    found.add(shlex.join(NUMBERS.get(word, word) for word in words))
    return sorted(found)


def program(words: list[str]) -> tuple[str, list[str]]:
    """Return the file that is run and what it is given."""
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        known = get_args_parser().parse_args(words[1:])
        return known.training_script, known.training_script_args
    at = 2 if words[0] == "accelerate" else 1
    return words[at], words[at + 1 :]


@pytest.fixture
def nothing_is_run(monkeypatch) -> None:
    def understood(parser):
        def parse(*values, **named):
            parser(*values, **named)
            raise UnderstoodError

        return parse

    parse_args = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(tyro, "cli", understood(tyro.cli))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", understood(parse_args))
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("command", commands())
def test_a_command_that_is_shown_is_understood(command, request, monkeypatch) -> None:
    words = shlex.split(command)
    path, given = ("", []) if words[0] == "hiergen" else program(words)
    request.getfixturevalue("nothing_is_run")
    if words[0] == "hiergen":
        verb, *rest = words[1:]
        assert verb in VERBS
        if not rest or (len(rest) == 1 and rest[0] in NAMED.get(verb, ())):
            return
        with pytest.raises(UnderstoodError):
            main(words[1:])
    else:
        assert (ROOT / path).is_file()
        monkeypatch.setattr(sys, "argv", [path, *given])
        # As for any program, its own folder comes first.
        monkeypatch.syspath_prepend(str((ROOT / path).parent))
        with pytest.raises(UnderstoodError):
            runpy.run_path(str(ROOT / path), run_name="__main__")


def test_commands_are_found_and_a_wrong_one_is_not_understood(nothing_is_run) -> None:
    assert len(commands()) > 40
    with pytest.raises(SystemExit):
        main(["generate", "--pipelin", "x"])
