"""`hiergen completion SHELL`: a script that completes verbs and options in bash, zsh or fish.

Options are those that `--help` of each verb shows, so the script is written anew after an upgrade.
"""

from __future__ import annotations

import contextlib
import io
import os
import re

from hiergen.cli import VERBS, verb_module
from hiergen.config import nearest

#: Shells, and the line that switches completion on for good.
SHELLS = {
    "bash": "hiergen completion bash > ~/.local/share/bash-completion/completions/hiergen",
    "zsh": "hiergen completion zsh > ~/.hiergen-completion.zsh, and in ~/.zshrc: source ~/.hiergen-completion.zsh",
    "fish": "hiergen completion fish > ~/.config/fish/completions/hiergen.fish",
}

_BASH = """\
_hiergen() {
    local word="${COMP_WORDS[COMP_CWORD]}" verb="${COMP_WORDS[1]}" kind="${COMP_WORDS[2]}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="@VERBS@"
    else
        case "$verb $kind" in
@KINDS@
        esac
        if [ -z "$words" ] || [ "$COMP_CWORD" -eq 2 ]; then
            case "$verb" in
@CASES@
            esac
        fi
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _hiergen hiergen
"""


def main(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print("usage: hiergen completion {bash,zsh,fish}   (prints a script; how to switch it on:)\n")
        print("\n".join(f"  {shell:5}  {how}" for shell, how in SHELLS.items()))
        raise SystemExit(0 if args else 2)
    if args[0] not in SHELLS:
        raise ValueError(f"unknown shell {args[0]!r}{nearest(args[0], SHELLS)}")
    print(script(args[0], words()), end="")


def script(shell: str, found: dict[str, list[str]]) -> str:
    """Return the script of a shell that completes what `words` found."""
    return _fish(found) if shell == "fish" else _bash(found, is_zsh=shell == "zsh")


def words() -> dict[str, list[str]]:
    """Return what may stand behind each verb, and behind each verb with a kind ("evaluate rfid"): kinds, names, options."""
    from hiergen.cli import bench, convert, evaluate, quickstart, recipes
    from hiergen.registry import list_presets

    kinds = {"quickstart": list(quickstart.KINDS), "evaluate": list(evaluate.KINDS), "bench": list(bench.BENCHMARKS)}
    names = {
        **kinds,
        "convert": [*convert.FAMILIES, "codes"],
        "train": list(recipes.recipes()),
        "recipes": list(recipes.recipes()),
        "info": list_presets(),
        "completion": list(SHELLS),
    }
    lines = [[verb] for verb in VERBS] + [[verb, kind] for verb, known in kinds.items() for kind in known]
    return {" ".join(line): (names.get(line[0], []) if len(line) == 1 else []) + _options(line) for line in lines}


def _options(line: list[str]) -> list[str]:
    """Return the options that the help of a command shows."""
    verb, *kind = line
    if verb == "completion":
        return ["--help"]
    module = verb_module(verb)
    shown = io.StringIO()
    before = os.environ.get("COLUMNS")
    # An option must not be broken in two.
    os.environ["COLUMNS"] = "200"
    try:
        with (
            contextlib.suppress(SystemExit),
            contextlib.redirect_stdout(shown),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            module.main([*kind, "--help"])
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.getvalue())
    return sorted({*re.findall(r"(?<![\w-])--[a-z][\w.-]*[\w]", plain), "--help"})


def _bash(found: dict[str, list[str]], *, is_zsh: bool) -> str:
    def case(key: str) -> str:
        return f'            "{key}") words="{" ".join(found[key])}" ;;'

    verbs = [key for key in found if " " not in key]
    script = _BASH.replace("@VERBS@", " ".join(verbs))
    script = script.replace("@KINDS@", "\n".join(case(key) for key in found if " " in key))
    script = script.replace("@CASES@", "\n".join("    " + case(key) for key in verbs))
    return f"autoload -U +X bashcompinit && bashcompinit\n{script}" if is_zsh else script


def _fish(found: dict[str, list[str]]) -> str:

    lines = [f"complete -c hiergen -n __fish_use_subcommand -f -a {verb} -d {_quoted(VERBS[verb])}" for verb in VERBS]
    for key, listed in found.items():
        seen = " && ".join(f"__fish_seen_subcommand_from {word}" for word in key.split())
        plain = [word for word in listed if not word.startswith("--")]
        options = [word.removeprefix("--") for word in listed if word.startswith("--")]
        lines += [f"complete -c hiergen -n {_quoted(seen)} -a {_quoted(' '.join(plain))}"] if plain else []
        lines += [f"complete -c hiergen -n {_quoted(seen)} -l {option}" for option in options]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
