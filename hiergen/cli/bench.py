"""`hiergen bench NAME`: each benchmark is a module of its name, in `hiergen.benchmarks` or, for generators, its folder `generators`."""

from __future__ import annotations

import importlib
from pathlib import Path

from hiergen.config import nearest, parse
from hiergen.telling import say, say_next

#: Benchmarks and what they compare.
BENCHMARKS = {
    "all": "all of the following at sizes for this machine, with the ratios of each case; --quick takes small sizes",
    "attention": "the backends of dense and level-masked attention, against PyTorch's fused attention under a dense mask",
    "restok": "ResTok encode and decode, against a plain transcription that rebuilds masks and rotary tables",
    "train-restok": "a training step of ResTok or HAR: time, split, FLOPs against the peak of a product, and the same step in plain operations",
    "hieratok": "HieraTok decoding with a dense mask, with one attention call per scale, and with a single scale",
    "har": "HAR sampling with and without cache, against a plain transcription of the official loop",
    "var": "VAR sampling with and without cache, against a plain transcription of the official loop",
    "mesh": "surface extraction: points evaluated and time, against the dense grid",
    "psa": "pyramid sparse attention, against dense attention and a binary block mask at equal compute",
    "psa-quality": "the error of pyramid sparse attention by density and by estimator of importance",
    "evaluate": "an evaluation beside its tokenizer, its feature extractor and its other parts alone",
    "mar": "MAR sampling, against a plain transcription of the official loop",
    "rar": "RAR sampling, against a plain transcription of the official loop",
    "scaling": "how time and memory grow with tokens, samples, levels, pixels, points and clips; --quick takes small sizes",
    "maskgit": "sampling of TiTok's MaskGIT, against a plain transcription of the official loop",
}


def main(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print("usage: hiergen bench NAME [--json FILE] [options]\n")
        print("\n".join(f"  {name:12}  {text}" for name, text in BENCHMARKS.items()))
        raise SystemExit(0 if args else 2)
    name, rest = args[0], list(args[1:])
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}{nearest(name, BENCHMARKS)}")
    target = None
    if "--json" in rest:
        at = rest.index("--json")
        if at + 1 == len(rest):
            raise ValueError("--json needs a file name")
        target = Path(rest[at + 1])
        del rest[at : at + 2]
    if name in ("all", "scaling") and "--quick" in rest:
        at = rest.index("--quick")
        if rest[at + 1 : at + 2] not in (["True"], ["False"]):
            rest.insert(at + 1, "True")
    from hiergen.benchmarks.settings import SETTINGS, module_of

    # Before what computes is imported: help comes at once.
    settings = parse(SETTINGS[name](), rest, prog=f"hiergen bench {name}")
    result = importlib.import_module(module_of(name)).run(settings)
    if target is not None:
        from hiergen.files import write_json

        write_json(target, result)
        say(f"wrote {target}")
    say_next(
        f"hiergen bench {name} --json {name}.json"
        if target is None and name not in ("all", "scaling")
        else "hiergen bench"
    )
