"""Every guide is run as it is written, commands and code, in a folder as its reader has it; only the training is shorter."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import trimesh
import yaml
from hub_server import add_llamagen, add_llamagen_by_text, write_t5
from PIL import Image
from safetensors.torch import save_file
from torch.distributed.run import get_args_parser

from hiergen.__main__ import main
from hiergen.data.videos.files import write_gif, write_mp4
from hiergen.evaluation.features.extractors import EXTRACTORS
from hiergen.evaluation.images.pair_metrics import PAIR_METRICS
from hiergen.pyramid import specs_to_json
from hiergen.registry import MODEL_CLASSES, create, preset_table

ROOT = Path(__file__).resolve().parents[2]
GUIDES = sorted((ROOT / "docs" / "guides").rglob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)

#: What a test adds to a command, by its beginning: the same work in less time.
SHORTER = {
    "hiergen train": "--samples 16 --batch_size 8 --log_every 8",
    "hiergen encode --tokenizer runs/restok_tiny/model --out": "--data.split test",
    "hiergen encode --tokenizer digits-1d --out": "--data.split test",
    "hiergen generate --pipeline my-clips": "--num-steps 2",
    "hiergen evaluate rfid": "--num-images 20",
    "hiergen evaluate gfid": "--num-images 20 --cache cache --distances.resamples 4",
    "hiergen prepare-shapes": "--sampling.num-surface 1024 --sampling.num-volume 128 --sampling.num-near 64 "
    "--sampling.num-farthest 0 --views.num-views 0 --num-workers 0",
}


@pytest.fixture
def reader(tmp_path, monkeypatch) -> Path:
    """The folder that a guide is read in: the recipes, and what the guide says that its reader has."""
    for name in ("tokenizers", "generators"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known, loaded = dict(MODEL_CLASSES), set(sys.modules)
    tables = {kind: preset_table(kind) for kind in ("tokenizer", "generator")}
    before = {kind: dict(table) for kind, table in tables.items()}
    extractors, metrics = dict(EXTRACTORS), dict(PAIR_METRICS)
    yield tmp_path
    # What a guide registered is its own.
    MODEL_CLASSES.clear()
    MODEL_CLASSES.update(known)
    for kind, table in tables.items():
        table.clear()
        table.update(before[kind])
    EXTRACTORS.clear()
    EXTRACTORS.update(extractors)
    PAIR_METRICS.clear()
    PAIR_METRICS.update(metrics)
    written = {path.stem for path in tmp_path.glob("*.py")}
    for name in set(sys.modules) - loaded:
        if name in written or name.startswith("hiergen_recipe_"):
            del sys.modules[name]


def own_images(folder: Path) -> None:
    for number, name in enumerate(("cats", "dogs")):
        (folder / "pictures" / name).mkdir(parents=True)
        for index in range(4):
            Image.effect_noise((40 + index, 36), 40 + 40 * number).save(folder / "pictures" / name / f"{index}.png")


def own_meshes(folder: Path) -> None:
    for name, size in (("cubes", 1.0), ("planks", 0.3)):
        (folder / "meshes" / name).mkdir(parents=True)
        for index in range(2):
            trimesh.creation.box((1.0, size, 1.0 + index)).export(folder / "meshes" / name / f"{index}.ply")


def own_clips(folder: Path) -> None:
    for number, (name, suffix) in enumerate((("nod", "mp4"), ("wave", "gif"))):
        (folder / "clips" / name).mkdir(parents=True)
        for index in range(2):
            noise = torch.rand(3, 1, 40, 48, generator=torch.Generator().manual_seed(number)) * 2 - 1
            clip = torch.cat([noise.roll(index + frame, -1 - number) for frame in range(17)], dim=1)
            {"mp4": write_mp4, "gif": write_gif}[suffix](folder / "clips" / name / f"{index}.{suffix}", clip)


def official_weights(folder: Path) -> None:
    from hiergen.convert.level_ar import to_official as har
    from hiergen.convert.restok import to_official as restok
    from hiergen.convert.var import generator_to_official, tokenizer_to_official

    (folder / "official").mkdir()
    write_t5(folder / "official" / "t5")
    published = {
        "projection": "reinterpreted",
        "merge": "even",
        "cnn_shortcut": "branch",
        "learnable_image_tokens": True,
    }
    tokenizer = create("restok-tiny", **published)
    generator = create("har-tiny", depth=1, num_classes=4)
    for name, tensors in (("restok", restok(tokenizer)), ("har", har(generator))):
        save_file(
            {key: value.contiguous().clone() for key, value in tensors.items()},
            folder / "official" / f"{name}.safetensors",
        )
    maps = create("multiscale-vq-680", widths=[32] * 5, num_blocks=1, code_dim=4, vocab_size=8)
    next_scale = create("var-d16", level_specs=specs_to_json(maps.specs), dim=64, depth=1, num_heads=1, num_classes=2)
    torch.save(tokenizer_to_official(maps), folder / "official" / "vae_ch160v4096z32.pth")
    torch.save(generator_to_official(next_scale), folder / "official" / "var_d16.pth")
    layout, heads = tokenizer.config, generator.config
    settings = {
        "restok": {
            "crop_size": 32,
            **{key: layout[key] for key in ("encoder_heads", "decoder_heads", "num_latent_tokens", "min_tokens")},
        },
        "har": {
            "n_head": heads["num_heads"],
            "num_latent_tokens": 16,
            "ar_token_num": heads["num_ar_tokens"],
            "token_size": layout["code_dim"],
        },
    }
    for name, values in settings.items():
        (folder / "official" / f"{name}.yaml").write_text(yaml.safe_dump(values))


PREPARED = {
    "own_images": own_images,
    "fine_tuning": own_images,
    "own_meshes": own_meshes,
    "own_clips": own_clips,
    "official_weights": official_weights,
}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_the_guide_does_what_it_says(guide, reader, capsys, request) -> None:
    if guide.stem == "official_weights":
        add_llamagen(hub := request.getfixturevalue("hub"))
        add_llamagen_by_text(hub)
    PREPARED.get(guide.stem, lambda folder: None)(reader)
    namespace: dict[str, object] = {"__name__": guide.stem}
    ran = 0
    for language, text in BLOCK.findall(guide.read_text()):
        if language == "bash":
            for line in text.splitlines():
                ran += 1
                run(line, capsys)
        elif language == "python":
            ran += 1
            if found := re.match(r"# (\w+\.py)\n", text):
                (reader / found[1]).write_text(text)
                continue
            exec(compile(text, guide.name, "exec"), namespace)
    assert ran


def run(line: str, capsys) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "torchrun":
        # In this process: that several do the same is tests/training/processes/test_processes.py's to hold.
        known = get_args_parser().parse_args(words[1:])
        words = ["hiergen", "train", known.training_script, *known.training_script_args]
        line = shlex.join(words)
    assert words[0] == "hiergen", line
    # A command that says how many samples to see goes on from one that did not.
    is_longer = "--samples" in words
    for beginning, more in SHORTER.items():
        if line.startswith(beginning):
            words += shlex.split(more.replace("--samples 16", "--samples 32") if is_longer else more)
    code = main(words[1:])
    assert code == 0, f"{line}\n{capsys.readouterr().err}"


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_every_link_of_a_guide_leads_somewhere(guide) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", guide.read_text())
    assert [target for target in targets if "://" not in target and not (guide.parent / target).exists()] == []


def test_every_guide_is_named_in_the_readme() -> None:
    shown = set(re.findall(r"docs/guides/(?:\w+/)?(\w+)\.md", (ROOT / "README.md").read_text()))
    assert shown == {guide.stem for guide in GUIDES}
