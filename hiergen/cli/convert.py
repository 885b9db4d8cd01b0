"""`hiergen convert FAMILY SRC DST`: official weights, or official codes, to hiergen's layout; or a model of ours to a smaller one."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from hiergen.checked import Checked, Count, CountOrZero
from hiergen.cli import check_exists, check_model, open_model
from hiergen.config import nearest
from hiergen.telling import counted, say, say_next

#: Families and the module whose `from_official` converts them.
FAMILIES = {
    "restok": "hiergen.convert.restok",
    "har": "hiergen.convert.level_ar",
    "mar": "hiergen.convert.masked",
    "flow": "hiergen.convert.flow_transformer",
    "ldm-vae": "hiergen.convert.ldm_vae",
    "llamagen": "hiergen.convert.llamagen",
    "var": "hiergen.convert.var",
    "titok": "hiergen.convert.one_dimensional.titok",
    "flextok": "hiergen.convert.one_dimensional.flextok",
    "maskgit": "hiergen.convert.one_dimensional.maskgit",
    "maskgit-vq": "hiergen.convert.one_dimensional.maskgit_vq",
    "rar": "hiergen.convert.one_dimensional.rar",
    "block": "hiergen.convert.sequences.block",
    "hnet": "hiergen.convert.sequences.hnet",
    "mar3d": "hiergen.convert.cascade",
    "shape-vae": "hiergen.convert.shape_vae",
}


#: Families that take a model of ours to one of another plan.
PLANS = ("recursive", "ladder", "chains")


@dataclasses.dataclass(frozen=True)
class ConvertSettings(Checked):
    """Convert official weights, or codes; or make a model of yours smaller.

    Attributes:
        family: The official code that wrote the weights: restok, har, mar, mar3d, shape-vae (Michelangelo, CraftsMan, MAR-3D),
            flow (LightningDiT, SiT), ldm-vae, llamagen, var, titok, maskgit (TiTok's generators), maskgit-vq (MaskGIT-VQGAN), rar,
            flextok, hnet or block (Block Transformer); "codes" for the ids that ResTok's program extracted. Or the name of official weights,
            e.g. "vq-16.in1k", which are downloaded; then the folder follows at once. Or what a model of yours becomes: "recursive" (its
            blocks run several times) or "ladder" (its branches do not wait for each other's sums between devices) or "chains" (it is the
            first chain of a wider one).
        source: File of weights (.safetensors, .bin, .pt or .pth; pickles are read with `weights_only=True`). For codes, the folder that
            holds `<name>_codes/0.npy ...` and `<name>_labels/0.npy ...`.
        target: Folder to write, for `from_pretrained`; for codes, the cache that generators are trained on.
        config: File of the official YAML or JSON config, where it is needed; sizes are read from the tensors.
        tokenizer: For codes, the preset of the tokenizer that made them. For the weights of a generator of var, the official file of its
            tokenizer.
        loops: For "recursive", number of times that the blocks run; there are as many fewer of them.
        rank: For "recursive", rank of what each step adds to its block's matrices: one number, or one per step. 0 adds nothing.
        start: For "recursive", what the blocks begin as: "average" or "lower" of the layers, or "stepwise", evenly spaced ones.
        vectors: For "recursive", norms and biases: each step's "own", "folded" into the matrices first, or "shared". By default "own"
            with a rank, "shared" without one.
        last: For "ladder", number of blocks at the end that change; by default all.
        chains: For "chains", heads of each chain that is added.
        part: For "recursive", "ladder" and "chains" of a pipeline, which model of it.
        stacks: For "recursive" and "ladder", stacks to convert, "encoder" or "decoder" of a model with both; by default all.
    """

    family: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="FAMILY")]]
    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SRC")]]
    target: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="DST")]] = None
    config: str | None = None
    tokenizer: str = "restok-l-128"
    loops: Count = 2
    rank: tuple[CountOrZero, ...] = (0,)
    start: Literal["average", "stepwise", "lower"] = "average"
    vectors: Literal["own", "folded", "shared"] | None = None
    last: CountOrZero | None = None
    chains: tuple[Count, ...] = ()
    part: str = "generator"
    stacks: tuple[str, ...] = ()


def main(args: list[str]) -> None:
    settings = tyro.cli(ConvertSettings, args=args, prog="hiergen convert")
    from hiergen.pretrained.official import OFFICIAL

    if settings.family in OFFICIAL:
        _convert_official(settings)
        return
    if settings.family not in {*FAMILIES, *PLANS, "codes"}:
        known = {*FAMILIES, *PLANS, "codes", *OFFICIAL}
        raise ValueError(f"unknown family {settings.family!r}{nearest(settings.family, known)}")
    if settings.target is None:
        raise ValueError(f"target is missing: expected hiergen convert {settings.family} SOURCE TARGET")
    if settings.family == "codes":
        _convert_codes(settings, settings.target)
        return
    if settings.family in PLANS:
        _convert_plan(settings, settings.target)
        return
    check_exists("source", settings.source, "a file of weights")
    from hiergen.files import atomic_directory
    from hiergen.pretrained.weights import read_checkpoint

    say(f"convert: {settings.family} weights in {settings.source} -> {settings.target}")
    state, config = read_checkpoint(settings.source), read_config(settings.config)
    if Path(settings.tokenizer).is_file():
        state = {"generator": state, "tokenizer": read_checkpoint(settings.tokenizer)}
    model = importlib.import_module(FAMILIES[settings.family]).from_official(state, config)
    with atomic_directory(settings.target) as temporary:
        model.save_pretrained(temporary)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{type(model).__name__} of {count:,} parameters written to {settings.target}")
    if known := model.config.get("weights_license"):
        say(f"the license of these weights: {known}")
    say_next(f"hiergen info {settings.target}")


def _convert_plan(settings: ConvertSettings, target: str) -> None:
    """Write a model of ours with another plan of its blocks."""
    from hiergen.files import atomic_directory
    from hiergen.nn.depth.conversion import to_ladder, to_recursive

    check_model("source", settings.source)
    model = open_model(settings.source, "cpu", part=settings.part)
    if settings.family == "chains":
        from hiergen.generators.level_ar.expansion import to_chains
        from hiergen.generators.level_ar.model import LevelAR

        if not isinstance(model, LevelAR):
            raise ValueError(f"source is {settings.source!r}, a {type(model).__name__}, expected a LevelAR for chains")
        made: Any = to_chains(model, settings.chains)
    elif settings.family == "ladder":
        made = to_ladder(model, last=settings.last, parts=settings.stacks)
    else:
        rank = settings.rank[0] if len(settings.rank) == 1 else settings.rank
        options: Any = {"loops": settings.loops, "rank": rank, "start": settings.start, "vectors": settings.vectors}
        made = to_recursive(model, **options, parts=settings.stacks)
    with atomic_directory(target) as temporary:
        made.save_pretrained(temporary)
    before, after = (sum(parameter.numel() for parameter in part.parameters()) for part in (model, made))
    print(f"{type(made).__name__} of {after:,} parameters, {after / before:.0%} of {before:,}, written to {target}")
    say_next(f"hiergen train RECIPE --init {target}")


def _convert_official(settings: ConvertSettings) -> None:
    """Write official weights to a folder, for machines without a network."""
    if settings.target is not None:
        raise ValueError(
            f"source is {settings.source!r} and target {settings.target!r}, but {settings.family!r} is downloaded: "
            f"expected hiergen convert {settings.family} TARGET"
        )
    from hiergen.files import atomic_directory
    from hiergen.pipelines.loading import from_pretrained

    model = from_pretrained(settings.family)
    with atomic_directory(settings.source) as temporary:
        model.save_pretrained(temporary)
    print(f"{settings.family}, a {type(model).__name__}, written to {settings.source}")
    say_next(f"hiergen info {settings.source}")


def _convert_codes(settings: ConvertSettings, target: str) -> None:
    import torch

    from hiergen.data.code_importers import find_npy_folders, import_npy_codes
    from hiergen.registry import create

    with torch.device("meta"):
        specs = create(settings.tokenizer).specs
    codes = import_npy_codes(*find_npy_folders(settings.source), target, specs=specs)
    variants = codes.levels[0].shape[1]
    classes = counted(len(codes.classes), "class")
    print(f"{counted(len(codes), 'image')}, {counted(variants, 'coding')} each, of {classes} in {target}")
    say_next(f"hiergen train har-l-128 --task.codes {target}")


def read_config(path: str | None) -> dict[str, Any] | None:
    """Return a YAML or JSON file as a dictionary; None for None.

    Raises:
        ValueError: If the file is missing or no mapping.
    """
    if path is None:
        return None
    import yaml

    file = Path(path)
    if not file.is_file():
        raise ValueError(f"config file {path!r} does not exist")
    try:
        value = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"config file {path!r} is not YAML: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"config file {path!r} holds a {type(value).__name__}, expected a mapping")
    return value
