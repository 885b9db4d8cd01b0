"""Damage files of every kind that hiergen reads, and read them: each loads or is refused by a ValueError that names it, soon.

    python tests/faults/damage_files.py --count 1000

Pictures, meshes, WebDataset shards, a model's config, its weights, and stored tokens; each copy is cut, has bytes changed or put in.
Exit code 0 if nothing else came out and no file took longer than two seconds.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import trimesh
from PIL import Image

import hiergen
from hiergen.data.images.files import read_image
from hiergen.data.images.shards import ShardPictures
from hiergen.geometry.meshes import MESH_SUFFIXES, load_mesh
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.registry import create

#: Seconds that reading one file may take.
PATIENCE = 2.0


def damaged(data: bytes, draws: random.Random) -> bytes:
    """Return a copy that is cut, has some bytes changed, or has some put in."""
    changed = bytearray(data)
    kind = draws.choice(["cut", "change", "insert"])
    if kind == "cut":
        del changed[draws.randrange(len(changed)) :]
        return bytes(changed)
    for _ in range(draws.randint(1, 4)):
        # The first bytes say what a file is; half of the damage is there.
        at = draws.randrange(min(len(changed), 400) if draws.random() < 0.5 else len(changed))
        if kind == "change":
            changed[at] ^= draws.randint(1, 255)
        else:
            changed[at:at] = draws.randbytes(draws.randint(1, 50))
    return bytes(changed)


def make_files(folder: Path) -> dict[str, tuple[list[Path], Callable[[Path], object]]]:
    """Write a small file or more of every kind; return them with what reads them."""
    picture = Image.effect_noise((24, 24), 40).convert("RGB")
    pictures = [folder / f"picture{suffix}" for suffix in (".png", ".jpg", ".webp", ".gif", ".bmp", ".tif", ".ppm")]
    for path in pictures:
        picture.save(path)
    meshes = [folder / f"mesh{suffix}" for suffix in MESH_SUFFIXES]
    for path in meshes:
        trimesh.creation.icosphere(subdivisions=1).export(path)
    shard = folder / "shard.tar"
    with tarfile.open(shard, "w") as archive:
        for key in ("a", "b"):
            for name, data in ((f"{key}.png", pictures[0].read_bytes()), (f"{key}.cls", b"3")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    model = folder / "model"
    create("flow-tiny", dim=16, depth=1, num_heads=1).save_pretrained(model)
    tokens = folder / "tokens.safetensors"
    TokenPyramid((torch.zeros(2, 4, dtype=torch.int64),), (LevelSpec(4, vocab_size=8),)).save(tokens)
    return {
        "picture": (pictures, read_image),
        "mesh": (meshes, load_mesh),
        "shard": ([shard], read_shard),
        "config": ([model / "config.json"], lambda path: hiergen.from_pretrained(path.parent)),
        "weights": (list(model.glob("*.safetensors")), lambda path: hiergen.from_pretrained(path.parent)),
        "tokens": ([tokens], TokenPyramid.load),
    }


def read_shard(path: Path) -> None:
    pictures = ShardPictures(str(path))
    for index in range(len(pictures.labels)):
        pictures.read(index)


def run(count: int, seed: int, chosen: list[str] | None = None) -> dict[str, dict[str, int]]:
    """Return by kind how many damaged files were read and refused, and how many gave anything else, which is printed."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, (files, read) in make_files(Path(folder)).items():
            if chosen and kind not in chosen:
                continue
            draws, tally = random.Random(f"{seed} {kind}"), {"read": 0, "refused": 0, "wrong": 0}
            for trial in range(count):
                file = files[trial % len(files)]
                whole = file.read_bytes()
                file.write_bytes(damaged(whole, draws))
                started = time.perf_counter()
                try:
                    read(file)
                    outcome, problem = "read", None
                except ValueError as error:
                    # The weights of a model are named by its folder.
                    is_named = file.name in str(error) or file.parent.name in str(error)
                    outcome, problem = ("refused", None) if is_named else ("wrong", f"does not name it: {error}")
                except BaseException as error:
                    outcome, problem = "wrong", f"{type(error).__name__}: {error}"
                if time.perf_counter() - started > PATIENCE:
                    outcome, problem = "wrong", f"took {time.perf_counter() - started:.1f} s"
                tally[outcome] += 1
                if problem:
                    print(f"{kind} {trial} ({file.name}): {problem[:300]}", file=sys.stderr)
                file.write_bytes(whole)
            found[kind] = tally
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="damaged files of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+")
    options = parser.parse_args()
    found = run(options.count, options.seed, options.kinds)
    print(json.dumps(found, indent=2))
    return int(any(tally["wrong"] for tally in found.values()))


if __name__ == "__main__":
    sys.exit(main())
