from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from hiergen.__main__ import VERBS, main
from hiergen.benchmarks.settings import SETTINGS, module_of
from hiergen.cli import evaluate, quickstart, verb_module
from hiergen.cli.bench import BENCHMARKS
from hiergen.cli.convert import FAMILIES, read_config
from hiergen.cli.train import load_recipe
from hiergen.data.codes import CodeSet
from hiergen.registry import create, list_presets
from hiergen.training.plan import follow_pass

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    create("restok-tiny").save_pretrained(folder)
    return folder


def test_the_verbs_are_frozen_and_each_has_a_module() -> None:
    """A verb is a promise: adding one is a decision, recorded here."""
    assert list(VERBS) == [
        "quickstart",
        "info",
        "recipes",
        "train",
        "encode",
        "reconstruct",
        "generate",
        "edit",
        "evaluate",
        "convert",
        "bench",
        "demo",
        "env",
        "prepare-shapes",
        "completion",
    ]
    for verb in VERBS:
        assert callable(verb_module(verb).main)
    for name in BENCHMARKS:
        assert callable(importlib.import_module(module_of(name)).run)
        assert SETTINGS[name]()
    for module_name in FAMILIES.values():
        assert callable(importlib.import_module(module_name).from_official)


@pytest.mark.parametrize("verb", [*VERBS])
def test_every_verb_has_help(verb, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert "usage" in capsys.readouterr().out.lower() + "usage"


def test_usage_and_unknown_verbs(capsys) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert main(["help"]) == 0
    assert main(["-v"]) == 0
    assert main(["--version"]) == 0
    assert main(["trian"]) == 2
    assert "did you mean train?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "field", "usage"),
    [
        ([], "--num-generated", "hiergen quickstart [images|shapes|video|text]"),
        (["images"], "--num-generated", "hiergen quickstart images"),
        (["shapes"], "--num-shapes", "hiergen quickstart shapes"),
        (["video"], "--num-clips", "hiergen quickstart video"),
        (["text"], "--samples-seen", "hiergen quickstart text"),
    ],
)
def test_each_kind_of_quickstart_has_its_options(words, field, usage, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["quickstart", *words, "--help"])
    printed = capsys.readouterr().out
    assert field in printed
    assert usage in " ".join(printed.split())


def test_an_unknown_kind_of_quickstart_is_refused(capsys) -> None:
    assert main(["quickstart", "shape"]) == 1
    assert "unknown kind of quickstart 'shape'; did you mean shapes?" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["images", "shapes", "video"])
def test_each_kind_of_quickstart_runs_what_it_names(kind, monkeypatch) -> None:
    from hiergen.quickstart.images import run as images
    from hiergen.quickstart.shapes import run as shapes
    from hiergen.quickstart.videos import run as videos

    found: dict[str, object] = {}
    monkeypatch.setattr(images, "run_quickstart", lambda settings: found.update(images=settings.out))
    monkeypatch.setattr(shapes, "run_shapes_quickstart", lambda settings: found.update(shapes=settings.out))
    monkeypatch.setattr(videos, "run_video_quickstart", lambda settings: found.update(video=settings.out))
    assert main(["quickstart", kind, "--out", "somewhere"]) == 0
    assert found == {kind: "somewhere"}


def test_an_unknown_option_is_refused_with_the_nearest(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["encode", "--tokenzer", "x"])
    assert stop.value.code == 2
    assert "--tokenizer" in capsys.readouterr().err


def test_info_lists_describes_and_suggests(capsys, tokenizer_dir) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    heads = [line.split()[:2] for line in lines if line.split()[1:2] in (["tokenizers"], ["generators"], ["packaged"])]
    assert [head[1] for head in heads] == ["tokenizers", "generators", "packaged"]
    assert re.search(r"^restok-l-128 +ResTok +ResTok, arXiv:2601.03955", printed, re.M)
    assert re.search(r"^digits-1d +ClassToImagePipeline", printed, re.M)
    assert lines[-1].startswith("next: hiergen info NAME")
    assert main(["info", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in listed["generators"]} == set(list_presets(kind="generator"))
    assert main(["info", "restok-s"]) == 0
    assert capsys.readouterr().out.count("restok-s") == 3
    assert main(["info", "restok-tiny", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)["parts"][0]
    assert described["parameters"] == 1_439_763
    assert [level["tokens"] for level in described["levels"]] == [1, 1, 2, 4, 8]
    assert main(["info", "restok-l-128"]) == 0
    assert "659,693,771 parameters" in capsys.readouterr().out
    assert main(["info", str(tokenizer_dir)]) == 0
    assert "ResTok" in capsys.readouterr().out
    create("patches-tiny").save_pretrained(tokenizer_dir.parent / "patches")
    assert main(["info", str(tokenizer_dir.parent / "patches")]) == 0
    assert "PatchComponents: " in capsys.readouterr().out
    assert main(["info", "--plan", "flow-tiny", "--gpus", "8"]) == 0
    printed = capsys.readouterr().out
    assert "FLOPs per sample" in printed
    assert "assumed, not measured" in printed
    assert main(["info", "--plan", "h*-tiny"]) == 0
    rows = capsys.readouterr().out
    assert "| har-tiny" in rows
    assert "| hieratok-tiny" in rows
    assert "nothing to plan: hnet-2stage-tiny, hnet-tiny" in rows
    assert main(["info", "restok-lrge"]) == 1
    assert "did you mean" in capsys.readouterr().err


def test_encode_and_reconstruct(tmp_path, tokenizer_dir, capsys) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(3):
        Image.new("RGB", (40, 33), (80 * index, 0, 0)).save(pictures / f"{index}.png")
    codes = ["encode", "--tokenizer", str(tokenizer_dir), "--data.source", str(pictures), "--out", str(tmp_path / "c")]
    assert main(codes) == 0
    printed = capsys.readouterr()
    assert "3 pyramids of 16 tokens" in printed.out
    assert printed.out.splitlines()[-1] == f"next: hiergen train har-tiny --task.codes {tmp_path / 'c'}"
    assert printed.err.startswith(
        f"encode: 3 images in {pictures} of 1 class; ResTok of 1,439,763 parameters on cpu -> {tmp_path / 'c'}"
    )
    out = tmp_path / "r.png"
    assert main(["reconstruct", "--tokenizer", str(tokenizer_dir), "--images", str(pictures), "--out", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.width > 100
    printed = capsys.readouterr()
    assert printed.out.startswith("1 level, 1 token: PSNR ")
    assert "over 3 images" in printed.out
    assert printed.out.splitlines()[-1] == (
        f"next: hiergen evaluate rfid --tokenizer {tokenizer_dir} --data.source {pictures} --data.size 32"
    )
    assert printed.err.startswith(f"reconstruct: 3 images of 32x32 from {pictures}; ResTok of 1,439,763 parameters")


def test_reconstruct_shows_every_scale_and_every_class(tmp_path, monkeypatch, capsys) -> None:
    drawn: dict = {}
    monkeypatch.setattr("hiergen.figures.save_image_grid", lambda path, rows, **more: drawn.update(rows=rows, **more))
    for name, count in (("a", 30), ("long-haired", 2)):
        (tmp_path / name).mkdir()
        for index in range(count):
            Image.new("RGB", (32, 32), (0, 0, 40 * (name != "a"))).save(tmp_path / name / f"{index:02d}.png")
    assert main(["reconstruct", "--tokenizer", "digits-2d", "--images", str(tmp_path), "--count", "4"]) == 0
    assert drawn["column_labels"] == ["a", "a", "long-haire", "long-haire"]
    assert [label.splitlines()[0] for label in drawn["row_labels"]] == ["input", "1 token", "5 tokens", "21 tokens"]
    assert [float(image.amax()) for image in drawn["rows"][0]] == pytest.approx(
        [-1, -1, 40 / 127.5 - 1, 40 / 127.5 - 1]
    )
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed[:3]] == [
        "1 scale, 1 token",
        "2 scales, 5 tokens",
        "3 scales, 21 tokens",
    ]
    assert printed[-1].endswith(f"--data.source {tmp_path} --data.size 32 --extractor.name own --lpips none")
    # A picture by itself has no class, and no set to be evaluated with.
    assert main(["reconstruct", "--tokenizer", "digits-2d", "--images", str(tmp_path / "a" / "00.png")]) == 0
    assert drawn["column_labels"] is None
    assert "next:" not in capsys.readouterr().out
    # A large one as it is, in windows: three beside each other, two above each other.
    Image.new("RGB", (80, 50)).save(tmp_path / "wide.png")
    assert (
        main(["reconstruct", "--tokenizer", "digits-2d", "--images", str(tmp_path / "wide.png"), "--whole", "True"])
        == 0
    )
    assert {tuple(row.shape) for row in drawn["rows"]} == {(1, 3, 50, 80)}
    assert drawn["row_labels"][-1].startswith("126 tokens")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("generate --pipeline @ --device cpu", "'@' holds a ResTok, expected a pipeline"),
        ("generate --pipeline @ --device warp", "device is 'warp', expected 'auto', 'cpu', or a GPU that is there"),
        ("encode --tokenizer @ --device warp", "device is 'warp', expected 'auto', 'cpu', or a GPU that is there"),
        ("reconstruct --tokenizer @ --device warp", "device is 'warp', expected 'auto', 'cpu', or a GPU that is there"),
    ],
)
def test_a_wrong_model_or_device_is_refused(words, said, tokenizer_dir, tmp_path, capsys) -> None:
    arguments = words.replace("@", str(tokenizer_dir)).split()
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 1
    assert said.replace("@", str(tokenizer_dir)) in capsys.readouterr().err


def test_convert_writes_a_model_that_loads(tmp_path, capsys) -> None:
    from hiergen.convert.level_ar import to_official

    model = create("har-tiny", depth=1, num_classes=4)
    save_file(to_official(model), tmp_path / "har.safetensors")
    (tmp_path / "har.yaml").write_text("gpt_model:\n  n_head: 5\n")
    arguments = ["convert", "har", str(tmp_path / "har.safetensors"), str(tmp_path / "out")]
    assert main([*arguments, "--config", str(tmp_path / "har.yaml")]) == 0
    printed = capsys.readouterr()
    assert "LevelAR of" in printed.out
    assert printed.out.splitlines()[-1] == f"next: hiergen info {tmp_path / 'out'}"
    assert printed.err.startswith(f"convert: har weights in {tmp_path / 'har.safetensors'}")
    assert (tmp_path / "out" / "config.json").is_file()
    assert main(["convert", "hat", "a", "b"]) == 1
    assert "did you mean har" in capsys.readouterr().err


def test_convert_imports_official_codes(tmp_path, capsys) -> None:
    for name in ("a_codes", "a_labels"):
        (tmp_path / name).mkdir()
    for index in range(3):
        np.save(tmp_path / "a_codes" / f"{index}.npy", np.full((10, 16), index))
        np.save(tmp_path / "a_labels" / f"{index}.npy", np.int64(index))
    arguments = ["convert", "codes", str(tmp_path), str(tmp_path / "cache"), "--tokenizer", "restok-tiny"]
    assert main(arguments) == 0
    assert "3 images, 10 codings each, of 3 classes" in capsys.readouterr().out
    assert CodeSet.open(tmp_path / "cache").levels[4][2, 7].tolist() == [2] * 8


def test_a_config_file_must_be_a_mapping(tmp_path) -> None:
    (tmp_path / "a.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="holds a list, expected a mapping"):
        read_config(str(tmp_path / "a.yaml"))


def test_recipes_are_checked(tmp_path) -> None:
    with pytest.raises(ValueError, match="is neither a file nor a recipe of the package"):
        load_recipe(str(tmp_path / "none.py"))
    (tmp_path / "wrong.py").write_text("def recipe():\n    return int('x')\n")
    with pytest.raises(ValueError, match=r"recipe '.*wrong.py' failed in line 2: ValueError: invalid literal for int"):
        load_recipe(str(tmp_path / "wrong.py"))
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"must define a function recipe\(\)"):
        load_recipe(str(tmp_path / "empty.py"))


@pytest.mark.parametrize("path", sorted(ROOT.glob("tokenizers/*.py")) + sorted(ROOT.glob("generators/*.py")), ids=str)
def test_every_recipe_makes_a_config(path) -> None:
    assert load_recipe(str(path)).num_steps > 0


def test_train_dry_run_prints_and_trains_nothing(tmp_path, capsys) -> None:
    recipe = str(ROOT / "tokenizers" / "restok_tiny.py")
    assert main(["train", recipe, "--dry-run", "--out", str(tmp_path / "run"), "--optim.lr", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed[: printed.index("\n}") + 2])["optim"]["lr"] == 0.5
    assert "tokenizer: 1,439,763 parameters" in printed
    one = follow_pass(create("restok-tiny"))
    assert f"({one.activation_bytes / 2**20:.1f} MiB each" in printed
    assert f"{one.activation_bytes * 32 / 2**30:.2f} GiB of activations for the 32 samples" in printed
    assert not (tmp_path / "run").exists()


def test_a_recipe_runs_as_a_program_in_two_processes(tmp_path) -> None:
    """`torchrun` starts two CPU processes, which `accelerate launch --cpu` does not; they train one model together."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "tokenizers/restok_tiny.py"]
    options = ["--out", str(tmp_path / "run"), "--samples", "16", "--batch_size", "8"]
    # Without what these tests tell Accelerate, and a user does not.
    variables = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    done = subprocess.run(
        [*command, *options], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("16 samples seen") == 1
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["samples"] == 16


def test_a_signal_ends_a_run_with_its_code(tmp_path) -> None:
    command = [sys.executable, "-m", "hiergen", "train", "tokenizers/restok_tiny.py", "--log_every", "32"]
    with subprocess.Popen([*command, "--out", str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        # The first line of the log says that training, and with it the handling of signals, has begun.
        while process.poll() is None and not (tmp_path / "log.jsonl").is_file():
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, printed = process.communicate(timeout=120)
    assert process.returncode == 143, printed
    assert "run again to continue" in printed
    assert list((tmp_path / "checkpoints").glob("samples-*"))


def test_a_benchmark_ends_with_the_command_that_follows(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("hiergen.benchmarks.restok.run", lambda settings: {"seed": settings.seed})
    assert main(["bench", "restok", "--seed", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "next: hiergen bench restok --json restok.json"
    file = tmp_path / "restok.json"
    assert main(["bench", "restok", "--seed", "3", "--json", str(file)]) == 0
    assert json.loads(file.read_text()) == {"seed": 3}
    assert capsys.readouterr().out.splitlines()[-1] == "next: hiergen bench"


@pytest.mark.parametrize("kind", ["rfid", "gfid", "shapes", "video"])
def test_an_evaluation_keeps_bars_out_of_a_log_file(kind, monkeypatch) -> None:
    from diffusers.utils import logging

    logging.enable_progress_bar()
    place = {
        "rfid": "images.reconstruction.evaluate_reconstructions",
        "gfid": "images.generation.evaluate_generations",
        "shapes": "shapes.evaluate.evaluate_shapes",
        "video": "videos.evaluate.evaluate_videos",
    }[kind]
    found = []
    monkeypatch.setattr(f"hiergen.evaluation.{place}", lambda settings: found.append(logging.is_progress_bar_enabled()))
    monkeypatch.setattr("hiergen.evaluation.runner.tell", lambda report: None)
    assert main(["evaluate", kind]) == 0
    assert found == [False]


#: Every verb with every word that may follow it and takes options of its own.
COMMANDS = [
    *VERBS,
    *(f"quickstart {kind}" for kind in quickstart.KINDS),
    *(f"evaluate {kind}" for kind in evaluate.KINDS),
    *(f"bench {name}" for name in BENCHMARKS),
    *(f"convert {family}" for family in FAMILIES),
]
#: Packages that take longer to import than help may take.
HEAVY = [
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "sklearn",
    "scipy",
    "matplotlib",
    "gradio",
    "trimesh",
    "av",
]


def test_no_help_and_no_mistaken_option_waits_for_a_heavy_package() -> None:
    program = f"""
import contextlib, io, sys
from hiergen.__main__ import main
for command in {COMMANDS}:
    for option in ("--help", "--no-such-option"):
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main([*command.split(), option])
        assert not set({HEAVY}) & set(sys.modules), (command, option, set({HEAVY}) & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_recipe_makes_help_wait_for_a_heavy_package() -> None:
    """By its name, and as a program: neither the settings of a task nor what trains are needed to list options."""
    program = f"""
import contextlib, io, runpy, sys
from hiergen.__main__ import main
from hiergen.cli.recipes import recipes
for name, recipe in recipes().items():
    for option in ("--help", "--no-such-option"):
        for run in (lambda: main(["train", name, option]), lambda: runpy.run_path(str(recipe.path), run_name="__main__")):
            sys.argv = [str(recipe.path), option]
            said = io.StringIO()
            try:
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    run()
            except SystemExit as end:
                assert end.code == (0 if option == "--help" else 2), (name, end.code, said.getvalue())
            assert "--task." in said.getvalue() or option != "--help", name
            assert not set({HEAVY}) & set(sys.modules), (name, option, set({HEAVY}) & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
