"""What a person meets first: paths that do not exist, recipes by name, completion, what an environment is, draws in passes."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hiergen
from hiergen import telling
from hiergen.__main__ import VERBS, main
from hiergen.cli.machine import completion
from hiergen.cli.machine.completion import SHELLS, script, words
from hiergen.cli.machine.env import environment
from hiergen.cli.recipes import find_recipe, recipes
from hiergen.data.images.pixels import to_uint8
from hiergen.figures import save_image_grid
from hiergen.pipelines.base import HiergenPipeline
from hiergen.registry import create

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("reconstruct --tokenizer nowhere", "--tokenizer: 'nowhere' is neither a folder nor a packaged model"),
        ("reconstruct --tokenizer ./nowhere", "--tokenizer: the folder './nowhere' does not exist"),
        ("encode --tokenizer here/nowhere", "--tokenizer: the folder 'here/nowhere' does not exist"),
        ("generate --pipeline runs/a/model", "--pipeline: the folder 'runs/a/model' does not exist"),
        ("demo /nowhere", "model: the folder '/nowhere' does not exist"),
        ("generate", "--pipeline is 'quickstart/pipeline', which does not exist: run `hiergen quickstart` first"),
        (
            "reconstruct --tokenizer digits-1d --images nowhere",
            "--images is 'nowhere', which does not exist; expected 'dig",
        ),
        (
            "encode --tokenizer digits-1d --data.source nowhere",
            "--data.source is 'nowhere', which does not exist; expec",
        ),
        (
            "encode --tokenizer digits-1d --shapes nowhere",
            "--shapes is 'nowhere', which does not exist; expected 'proced",
        ),
        (
            "encode --tokenizer digits-1d --videos nowhere",
            "--videos is 'nowhere', which does not exist; expected a folder",
        ),
        (
            "encode --tokenizer digits-1d --shapes procedural --image-encoder nowhere",
            "--image-encoder: 'nowhere' is nei",
        ),
        ("convert har nowhere out", "source is 'nowhere', which does not exist; expected a file of weights"),
        ("generate --pipeline digits-1d --count 0", "count is 0, expected at least 1"),
        ("generate --pipeline digits-1d --batch-size 0", "batch_size is 0, expected at least 1"),
        ("generate --pipeline digits-1d --best-of 0", "best_of is 0, expected at least 1"),
        ("generate --pipeline clips --best-of 2", "best_of is 2, but 'clips' makes no images: expected 1"),
        ("generate --pipeline clips --npz a.npz", "npz is 'a.npz', but 'clips' makes no images"),
        ("reconstruct --tokenizer digits-1d --whole True", "whole is set and images is 'digits', expected one picture"),
        ("reconstruct --tokenizer digits-1d --count 0", "count is 0, expected at least 1"),
        ("reconstruct --tokenizer shapes-by-class", "'shapes-by-class' holds a PyramidVAE, which encodes no images"),
        ("train restok-tny", "recipe 'restok-tny' is neither a file nor a recipe of the package"),
        ("train nowhere/restok_tiny.py", "the package has it: hiergen train restok-tiny"),
        ("recipes --to a.py", "to is 'a.py', but no recipe is copied: add --copy NAME"),
        ("completion tcsh", "unknown shell 'tcsh'"),
    ],
)
def test_a_mistake_is_one_sentence_at_once(line, said, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 1
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1


def test_a_recipe_is_found_by_name_or_path() -> None:
    assert find_recipe("restok-tiny") == find_recipe("restok_tiny") == ROOT / "tokenizers" / "restok_tiny.py"
    assert find_recipe(str(ROOT / "generators" / "har_tiny.py")) == ROOT / "generators" / "har_tiny.py"
    files = [path for folder in ("tokenizers", "generators") for path in (ROOT / folder).glob("*.py")]
    assert len(recipes()) == len(files)


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_says_what_it_needs(name) -> None:
    recipe = recipes()[name]
    assert recipe.trains.startswith("Train ")
    assert recipe.needs("Data") != "-"
    assert recipe.needs("Time") != "-"
    assert set(recipe.needs("Extra").split(", ")) <= {"none", "images", "shapes", "video", "eval"}


def test_recipes_are_listed_shown_and_copied(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in recipes())
    assert main(["recipes", "har-tiny"]) == 0
    assert "First: `python tokenizers/restok_tiny.py`" in capsys.readouterr().out
    assert main(["recipes", "--copy", "har-tiny"]) == 0
    assert capsys.readouterr().out.splitlines() == ["wrote har_tiny.py", "next: hiergen train har_tiny.py --dry-run"]
    assert (tmp_path / "har_tiny.py").read_bytes() == (ROOT / "generators" / "har_tiny.py").read_bytes()
    assert main(["recipes", "--copy", "har-tiny"]) == 1
    assert "'har_tiny.py' exists already; give another --to FILE, or delete it" in capsys.readouterr().err
    assert main(["train", "har_tiny.py", "--dry-run"]) == 0


def test_env_says_what_a_report_needs_and_nothing_secret(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(["env"]) == 0
    printed = capsys.readouterr().out
    assert "hf_secret" not in printed
    assert str(Path.home()) not in printed or str(ROOT).startswith(str(Path.home()))
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == environment()
    assert found["packages"]["torch"]
    assert found["machine"]["OMP_NUM_THREADS"] == "1"
    assert found["machine"]["threads of torch"] >= 1
    assert set(found["caches"]) == {"Hugging Face", "torch"}
    assert "gradio" in found["extra [demo]"]


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    found = words()
    return {shell: script(shell, found) for shell in SHELLS}


def test_completion_prints_the_script(scripts, monkeypatch, capsys) -> None:
    monkeypatch.setattr(completion, "words", lambda: {"env": ["--json"]})
    assert main(["completion", "bash"]) == 0
    assert '"env") words="--json" ;;' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "offered", "missing"),
    [
        ("hiergen re", {"reconstruct", "recipes"}, "encode"),
        ("hiergen encode --data.", {"--data.source", "--data.size"}, "--tokenizer"),
        ("hiergen evaluate ", {"rfid", "gfid", "compare"}, "--resamples"),
        ("hiergen evaluate compare --r", {"--resamples"}, "--seed"),
        ("hiergen train rest", {"restok-tiny", "restok-small-64", "restok-l-128"}, "har-tiny"),
        ("hiergen generate --n", {"--npz", "--num-steps", "--num-levels"}, "--out"),
    ],
)
def test_bash_completes(scripts, line, offered, missing) -> None:
    listed = line.split() + ([""] if line.endswith(" ") else [])
    program = f'{scripts["bash"]}\nCOMP_WORDS=({" ".join(repr(word) for word in listed)}); COMP_CWORD={len(listed) - 1}; _hiergen; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    found = set(done.stdout.split())
    assert offered <= found
    assert missing not in found


def test_the_scripts_of_other_shells_know_the_same(scripts) -> None:
    assert scripts["zsh"].startswith("autoload -U +X bashcompinit && bashcompinit\n")
    assert scripts["zsh"].endswith(scripts["bash"])
    for verb in VERBS:
        assert f"-n __fish_use_subcommand -f -a {verb} -d '" in scripts["fish"]
    seen = "'__fish_seen_subcommand_from evaluate && __fish_seen_subcommand_from compare'"
    assert f"complete -c hiergen -n {seen} -l resamples\n" in scripts["fish"]
    assert "convert official weights to hiergen\\'s layout" in scripts["fish"]


def generated(out: Path, *options: str) -> list[bytes]:
    line = ["generate", "--pipeline", "digits-1d", "--labels", "3", "7", "--count", "2", "--out", str(out)]
    assert main([*line, *options]) == 0
    return [np.asarray(Image.open(path)).tobytes() for path in sorted(out.glob("?-*.png"))]


def test_images_are_generated_in_passes_and_into_an_npz(tmp_path, capsys) -> None:
    at_once = generated(tmp_path / "a")
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == f"4 images and grid.png in {tmp_path / 'a'}"
    follows = (
        "next: hiergen evaluate gfid --pipeline digits-1d --data.source FOLDER --data.size 32 --extractor.name own"
    )
    assert printed.out.splitlines()[-1] == follows
    assert (
        printed.err
        == f"generate: 4 samples by ClassToImagePipeline of 3,001,843 parameters on cpu -> {tmp_path / 'a'}\n"
    )
    rng = torch.Generator().manual_seed(0)
    pipe = hiergen.from_pretrained("digits-1d")
    asked = {"num_images_per_label": 2, "guidance_scale": 1.5, "output_type": "pt"}
    drawn = to_uint8(pipe([3, 7], generator=rng, **asked).images).permute(0, 2, 3, 1)
    assert at_once == [image.contiguous().numpy().tobytes() for image in drawn]
    assert generated(tmp_path / "b", "--batch-size", "4") == at_once
    assert generated(tmp_path / "c", "--batch-size", "3") != at_once
    npz = tmp_path / "d.npz"
    assert generated(tmp_path / "d", "--npz", str(npz)) == []
    with np.load(npz) as file:
        assert file["arr_0"].dtype == np.uint8
        assert [image.tobytes() for image in file["arr_0"]] == at_once
    assert (tmp_path / "d" / "grid.png").is_file()


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> Path:
    """A pipeline with a class whose name is the number of another, and two whose names are one to some file systems."""
    pipe = hiergen.from_pretrained("digits-1d")
    names = ["Faces", "airplanes", "1", "A$B", "a$b"]
    pipe.generator.register_to_config(id2label={str(label): name for label, name in enumerate(names)})
    folder = tmp_path_factory.mktemp("named")
    pipe.save_pretrained(folder)
    return folder


def test_classes_are_asked_for_by_name_and_files_have_the_names(named, tmp_path, capsys, monkeypatch) -> None:
    drawn: list[dict[str, object]] = []
    monkeypatch.setattr("hiergen.figures.save_image_grid", lambda *_, **options: drawn.append(options))
    line = ["generate", "--pipeline", str(named), "--count", "1", "--out", str(tmp_path)]
    assert main([*line, "--labels", "airplanes", "7", "faces", "1", "3", "a$b"]) == 0
    found = sorted(path.name for path in tmp_path.iterdir())
    expected = ["1", "Faces", "airplanes", "class0003-A-B", "class0004-a-b", "class0007"]
    assert found == [f"{name}-000.png" for name in expected]
    assert drawn == [{"row_labels": ["airplanes", "7", "Faces", "1", "A$B", "a$b"]}]
    assert "generate: 1 is read as the name of class 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["airplane"], "labels holds 'airplane', which is the name of no class; did you mean airplanes?"),
        (["-1"], "labels holds '-1', which is the name of no class"),
        (["Faces", "0"], "labels holds '0', the same class as 'Faces': name it once, with a larger --count"),
        (["12"], "class labels span 12 to 12, expected 0 to 9"),
    ],
)
def test_classes_that_are_not_there_or_asked_for_twice(named, tmp_path, capsys, labels, message) -> None:
    assert main(["generate", "--pipeline", str(named), "--out", str(tmp_path), "--labels", *labels]) == 1
    assert message in capsys.readouterr().err


def test_a_name_with_dollars_is_no_formula(tmp_path) -> None:
    save_image_grid(
        tmp_path / "g.png", [torch.zeros(1, 3, 8, 8)], row_labels=["$x^$"], column_labels=["$"], title="$^$"
    )
    assert (tmp_path / "g.png").is_file()


def test_info_names_the_classes_of_a_pipeline(named, capsys) -> None:
    assert main(["info", str(named)]) == 0
    assert "5 classes: Faces, airplanes, 1, A$B, a$b\n" in capsys.readouterr().out
    assert main(["info", "digits-1d", "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    assert [part.get("classes", {}).get("7") for part in parts] == [None, "7"]


def test_the_number_format_and_compiling_are_chosen(tmp_path, monkeypatch, capsys) -> None:
    compiled: list[dict[str, object]] = []
    monkeypatch.setattr(HiergenPipeline, "compile", lambda pipe, **options: compiled.append(options))
    plain = generated(tmp_path / "a", "--dtype", "float32")
    assert compiled == []
    monkeypatch.setattr("hiergen.environment.choose_dtype", lambda device: torch.bfloat16)
    half = generated(tmp_path / "b", "--dtype", "bfloat16", "--compile", "True")
    assert half != plain
    assert generated(tmp_path / "auto", "--dtype", "auto") == half
    assert compiled == [{}]
    assert capsys.readouterr().err.count("\n") == 3, "a line of each call, and no bars"

    def opened(path: str, device: str, **options: object) -> None:
        raise OSError(f"opened with {options}")

    monkeypatch.setattr("hiergen.cli.encode.open_model", opened)
    assert main(["encode", "--tokenizer", "digits-1d", "--dtype", "float16", "--out", str(tmp_path / "c")]) == 1
    assert "opened with {'part': 'tokenizer', 'dtype': 'float16'}" in capsys.readouterr().err


def test_progress_is_told_in_lines_where_there_is_no_terminal(monkeypatch) -> None:
    monkeypatch.setattr(telling, "INTERVAL", 0.01)
    lines: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(telling, "say", lines.put)
    with telling.progress("encode", 20, "image", done=4) as show:
        first = lines.get(timeout=30)
        show(12)
        later = next(line for line in iter(lambda: lines.get(timeout=30), None) if line.startswith("encode: 12"))
    assert first == "encode: 4 of 20 images after 0 s"
    assert later == "encode: 12 of 20 images after 0 s, about 0 s left"


def test_waiting_is_told_unless_something_else_was_said(monkeypatch) -> None:
    monkeypatch.setattr(telling, "INTERVAL", 0.01)
    lines: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(telling, "say", lines.put)
    with telling.waiting("train: reading data"):
        assert lines.get(timeout=30) == "train: reading data, 0 s so far"
    lines = queue.Queue()
    monkeypatch.setattr(telling, "say", lines.put)
    # As if a line came in every moment from now on.
    monkeypatch.setitem(telling._last, "said", time.monotonic() + 1000)
    with telling.waiting("train: reading data"):
        time.sleep(0.1)
    assert lines.empty()
    monkeypatch.undo()
    monkeypatch.setitem(telling._last, "said", 0.0)
    telling.say("something")
    assert telling._last["said"] > 0


def test_things_are_counted_in_their_unit() -> None:
    assert [telling.counted(count, "token") for count in (0, 1, 2, 2000)] == [
        "0 tokens",
        "1 token",
        "2 tokens",
        "2,000 tokens",
    ]
    assert telling.counted(2, "class") == "2 classes"
    assert telling.counted(3, "mesh") == "3 meshes"


def test_output_that_nobody_reads_any_more_ends_quietly() -> None:
    program = f"{sys.executable} -m hiergen bench --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 141)
    assert done.stderr == ""


def test_pictures_are_encoded_at_the_size_of_the_tokenizer(tmp_path, capsys) -> None:
    sizes = {"image_size": 48, "scales": [1, 6], "encoder_dim": 16, "decoder_dim": 16, "encoder_depth": 1}
    create("hieratok-tiny", **sizes, decoder_depth=1).save_pretrained(tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64), (80, 0, 0)).save(tmp_path / "pictures" / "a.png")
    line = f"encode --tokenizer {tmp_path / 'model'} --data.source {tmp_path / 'pictures'} --out {tmp_path / 'codes'}"
    assert main(line.split()) == 0
    assert "1 pyramid of 36 tokens" in capsys.readouterr().out
    assert main([*line.split(), "--data.size=32"]) == 1
    assert "data.size is 32, but the tokenizer takes pictures of 48x48 pixels: leave it out" in capsys.readouterr().err
