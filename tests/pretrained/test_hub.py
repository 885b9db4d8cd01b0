"""Official weights by name, from a hub on loopback with random weights in the official layout."""

from __future__ import annotations

import concurrent.futures
import errno
import importlib
import json
import os
import threading
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hub_server import COMMIT, add_llamagen, add_llamagen_by_text
from huggingface_hub import constants

import hiergen
from hiergen.__main__ import main
from hiergen.convert.one_dimensional.flextok import to_official as flextok_to_official
from hiergen.pretrained import hub as official
from hiergen.pretrained.hub import fetch
from hiergen.pretrained.official import OFFICIAL, Official
from hiergen.registry import presets
from hiergen.tokenizers.flextok.presets import AUTOENCODER
from hiergen.training.finetune.weights import load_source
from hiergen.training.tasks.settings import GeneratorTaskConfig

TOKENIZER, GENERATOR, REPOSITORY = "vq-16.in1k", "llamagen-b-256.in1k", "FoundationVision/LlamaGen"


@pytest.fixture
def llamagen(hub):
    """The hub with LlamaGen's files, and the models that they hold."""
    return hub, *add_llamagen(hub)


def leftovers(cache: Path) -> list[str]:
    """Return what a broken call left of a conversion."""
    folders = [folder for folder in cache.rglob("hiergen") if folder.is_dir()]
    return [path.name for folder in folders for path in folder.iterdir() if not path.name.endswith(".lock")]


def cache() -> Path:
    return Path(constants.HF_HUB_CACHE)


def change_row(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Change the tokenizer's row."""
    monkeypatch.setitem(OFFICIAL, TOKENIZER, Official(**{**vars(OFFICIAL[TOKENIZER]), **changes}))


def test_the_first_call_downloads_and_the_second_needs_no_network(llamagen, monkeypatch) -> None:
    hub, tokenizer, generator = llamagen
    pipe = hiergen.from_pretrained(GENERATOR)
    assert isinstance(pipe, hiergen.ClassToImagePipeline)
    assert not pipe.generator.training
    assert not pipe.tokenizer.training
    for ours, theirs in ((pipe.generator, generator), (pipe.tokenizer, tokenizer)):
        wanted = theirs.state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in ours.state_dict().items())
    assert sum("GET" in line for line in hub.asked) == 2
    asked, folder = len(hub.asked), fetch(TOKENIZER)
    assert cache() in folder.parents
    assert {path.name for path in folder.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    monkeypatch.setattr("hiergen.pretrained.weights.read_checkpoint", None)
    hub.files.clear()
    again = hiergen.from_pretrained(GENERATOR)
    assert len(hub.asked) == asked
    assert torch.equal(again.generator.head.weight, generator.head.weight)
    half = hiergen.from_pretrained(TOKENIZER, torch_dtype=torch.bfloat16)
    assert half.decoder.conv_in.weight.dtype == torch.bfloat16
    assert set(leftovers(cache())) == {folder.name, fetch(GENERATOR).name}


def test_a_generator_of_texts_comes_alone(hub) -> None:
    served = add_llamagen_by_text(hub)
    generator = hiergen.from_pretrained("llamagen-xl-text-256.laion")
    assert isinstance(generator, hiergen.LevelAR)
    assert not generator.training
    assert torch.equal(generator.class_embedding.null_features, served.class_embedding.null_features)


def test_a_generator_of_another_size_gets_the_tokenizer_of_that_size(llamagen) -> None:
    hub, _, generator = llamagen
    hub.files[REPOSITORY, "c2i_B_384.pt"] = hub.files[REPOSITORY, "c2i_B_256.pt"]
    pipe = hiergen.from_pretrained("llamagen-b-576.in1k")
    assert pipe.tokenizer.specs[0].grid == pipe.generator.specs[0].grid == (24, 24)
    assert torch.equal(pipe.generator.token_embedding.weight, generator.token_embedding.weight)


def test_a_download_that_breaks_off_is_told_and_gone_on_with(llamagen, monkeypatch) -> None:
    hub, tokenizer, _ = llamagen
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.cut.add("vq_ds16_c2i.pt")
    with pytest.raises(ValueError, match=rf"'{TOKENIZER}': the download of vq_ds16_c2i.pt from {REPOSITORY} broke off"):
        fetch(TOKENIZER)
    assert leftovers(cache()) == []
    hub.cut.clear()
    loaded = hiergen.from_pretrained(TOKENIZER)
    assert torch.equal(loaded.quantizer.codebook, tokenizer.quantizer.codebook)


@pytest.mark.parametrize("is_known", [True, False])
def test_a_wrong_digest_deletes_the_file(llamagen, monkeypatch, is_known) -> None:
    hub, _, _ = llamagen
    if is_known:
        change_row(monkeypatch, sha256={"vq_ds16_c2i.pt": "0" * 64})
    else:
        # What the Hub says that the file has.
        hub.damaged.add("vq_ds16_c2i.pt")
    with pytest.raises(ValueError, match=rf"'{TOKENIZER}': vq_ds16_c2i.pt has the SHA-256 .*, expected .* is deleted"):
        fetch(TOKENIZER)
    assert leftovers(cache()) == []
    assert not [path for path in cache().rglob("*") if path.is_file() and path.stat().st_size > 10_000]
    hub.damaged.clear()
    if not is_known:
        assert fetch(TOKENIZER).is_dir()


def test_a_missing_file_repository_or_revision_is_named(llamagen, monkeypatch) -> None:
    change_row(monkeypatch, files=("vq.safetensors|vq.pt",))
    with pytest.raises(ValueError, match=f"the repository {REPOSITORY} holds no file vq.safetensors or vq.pt: it was"):
        fetch(TOKENIZER)
    change_row(monkeypatch, revision="v9")
    with pytest.raises(ValueError, match=f"the repository {REPOSITORY} has no revision 'v9'"):
        fetch(TOKENIZER)
    change_row(monkeypatch, repository="nobody/nothing")
    with pytest.raises(
        ValueError, match="the repository nobody/nothing is not there, or is private; if you may read it"
    ):
        fetch(TOKENIZER)
    assert leftovers(cache()) == []
    # The first alternative that is there is taken, at the revision that the table pins.
    change_row(monkeypatch, repository=REPOSITORY, files=("vq.safetensors|vq_ds16_c2i.pt",), revision=COMMIT)
    assert (fetch(TOKENIZER) / "config.json").is_file()


def test_a_gated_repository_says_how_to_get_in(llamagen) -> None:
    hub, _, _ = llamagen
    hub.gated.add(REPOSITORY)
    with pytest.raises(
        ValueError, match=rf"'{TOKENIZER}' is gated: accept its license at https://huggingface.co/{REPOSITORY}"
    ):
        fetch(TOKENIZER)
    assert leftovers(cache()) == []


def test_offline(llamagen, monkeypatch) -> None:
    hub, tokenizer, _ = llamagen
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=r"'vq-16.in1k' is not in the cache .*hub_cache' yet, and HF_HUB_OFFLINE is set"
    ):
        hiergen.from_pretrained(TOKENIZER)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        ValueError, match=r"'vq-16.in1k' is not in the cache .*hub_cache' yet, and the Hub cannot be re"
    ):
        hiergen.from_pretrained(TOKENIZER)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    official._download(TOKENIZER, OFFICIAL[TOKENIZER], "vq_ds16_c2i.pt")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    # What the Hub's client has in its cache already is converted without a network.
    assert torch.equal(hiergen.from_pretrained(TOKENIZER).quantizer.codebook, tokenizer.quantizer.codebook)


def test_two_at_once_convert_once(llamagen, monkeypatch) -> None:
    """The second waits at the lock, a file, for the first, whichever process or thread either is in."""
    hub, _, _ = llamagen
    started, go_on, converted = threading.Event(), threading.Event(), list[str]()
    convert = official.convert

    def slow(name: str, row: Official, files: list[Path]) -> object:
        converted.append(name)
        started.set()
        assert go_on.wait(60)
        return convert(name, row, files)

    monkeypatch.setattr(official, "convert", slow)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(fetch, TOKENIZER)
        assert started.wait(60)
        second = pool.submit(fetch, TOKENIZER)
        with pytest.raises(concurrent.futures.TimeoutError):
            second.result(timeout=0.2)
        go_on.set()
        assert first.result(60) == second.result(60)
    assert converted == [TOKENIZER]
    assert leftovers(cache()) == [first.result().name]
    assert sum(line.startswith("GET") for line in hub.asked) == 1


@pytest.mark.parametrize(
    ("number", "todo"),
    [(errno.ENOSPC, "No space left on device.*free some space"), (errno.EROFS, "Read-only.*writable")],
)
def test_a_disk_that_refuses_is_explained(llamagen, monkeypatch, number, todo) -> None:
    def refuse(self: object, folder: Path) -> None:
        (Path(folder) / "config.json").write_text("half")
        raise OSError(number, os.strerror(number), str(folder))

    with monkeypatch.context() as patch:
        patch.setattr(hiergen.VQAutoencoder, "save_pretrained", refuse)
        with pytest.raises(OSError, match=rf"'{TOKENIZER}' cannot be written to the cache .*{todo}, or set HF_HOME"):
            fetch(TOKENIZER)
        assert leftovers(cache()) == []
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", lambda *args, **options: refuse(args, cache()))
        change_row(monkeypatch, revision=COMMIT, files=("c2i_B_256.pt",))
        with pytest.raises(OSError, match=rf"cannot be written to the cache .*{todo}"):
            fetch(TOKENIZER)
    # Where the conversion is there, nothing is written.
    folder = fetch(GENERATOR)
    monkeypatch.setattr(Path, "mkdir", lambda self, *args, **options: refuse(self, self))
    assert fetch(GENERATOR) == folder


def test_files_that_are_not_this_model(hub) -> None:
    hub.add(REPOSITORY, "vq_ds16_c2i.pt", {"model": {"quantize.embedding.weight": torch.zeros(3, 8)}})
    with pytest.raises(
        ValueError, match=rf"'{TOKENIZER}': vq_ds16_c2i.pt of {REPOSITORY} does not fit: the state dict lacks"
    ):
        fetch(TOKENIZER)
    hub.add(REPOSITORY, "c2i_B_256.pt", {"model": main})
    with pytest.raises(
        ValueError, match=r"cannot be read as plain tensors .*it holds hiergen.__main__.main, which would"
    ):
        fetch(GENERATOR)
    assert leftovers(cache()) == []


def test_restricted_licenses_are_told_once(llamagen, monkeypatch, capfd) -> None:
    fetch(TOKENIZER)
    assert "license" not in capfd.readouterr().err
    change_row(monkeypatch, license="for research only", is_restricted=True, revision=COMMIT)
    fetch(TOKENIZER)
    assert f"{TOKENIZER}: the license of these weights is: for research only" in capfd.readouterr().err
    fetch(TOKENIZER)
    assert capfd.readouterr().err == ""


def test_several_files_come_as_one_checkpoint(llamagen, monkeypatch) -> None:
    """A converter finds each model in them by its anchor."""
    _, tokenizer, _ = llamagen
    change_row(monkeypatch, files=("c2i_B_256.pt", "vq_ds16_c2i.pt"))
    assert torch.equal(hiergen.from_pretrained(TOKENIZER).quantizer.codebook, tokenizer.quantizer.codebook)


def test_a_changed_row_is_not_read_from_an_older_conversion(llamagen, monkeypatch) -> None:
    first = fetch(TOKENIZER)
    change_row(monkeypatch, config={"image_size": 32})
    assert fetch(TOKENIZER) != first
    assert hiergen.from_pretrained(TOKENIZER).specs[0].num_tokens == 4


def test_names_that_are_mistyped_ask_nobody(hub, capsys) -> None:
    with pytest.raises(ValueError, match=r"'vq-16.in2k' is neither a folder .*; did you mean vq-16.in1k"):
        hiergen.from_pretrained("vq-16.in2k")
    with pytest.raises(
        ValueError, match=r"'vq-16' is neither a folder .*; it is a preset, whose weights are 'vq-16.in1k'"
    ):
        hiergen.from_pretrained("vq-16")
    with pytest.raises(
        ValueError, match=r"'mar-b.in1k' cannot be downloaded by name: get checkpoint-last.pth of this size"
    ):
        hiergen.from_pretrained("mar-b.in1k")
    assert main(["info", "vq-16.in2k"]) == 1
    assert "unknown weights 'vq-16.in2k'; did you mean vq-16.in1k" in capsys.readouterr().err
    assert hub.asked == []


def test_a_training_starts_from_a_name(llamagen) -> None:
    _, _, generator = llamagen
    source = load_source(GENERATOR, GeneratorTaskConfig(preset="llamagen-b-256"))
    assert isinstance(source, hiergen.LevelAR)
    assert torch.equal(source.head.weight, generator.head.weight)


def test_info_says_what_a_download_brings_before_it(hub, capsys) -> None:
    assert main(["info", GENERATOR, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["model"]) == (GENERATOR, "LevelAR")
    assert told["parts"][0]["parameters"] == 110_888_448
    assert told["weights"] == {
        "license": "MIT",
        "confirmed by": "README of github.com/FoundationVision/LlamaGen, model card",
        "repository": REPOSITORY,
        "revision": "main",
        "files": ["c2i_B_256.pt"],
        "download": "444 MB",
        "tokenizer": TOKENIZER,
    }
    assert main(["info", "kl-16.in1k"]) == 0
    assert "by hand: get kl16.ckpt" in capsys.readouterr().out
    assert main(["info", "vq-*", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["tokenizers"]
    assert {row["name"]: row["weights"] for row in rows} == {"vq-16": "vq-16.in1k, vq-16.text", "vq-8": "vq-8.in1k"}
    assert hub.asked == []


def test_a_configuration_beside_the_weights_reaches_the_converter(hub, capfd) -> None:
    """FlexTok's, whose license is told at the download alone."""
    name, repository = "flextok-d12-d12.in1k", "EPFL-VILAB/flextok_d12_d12_in1k"
    sizes = {
        f"{side}_{part}": size
        for side in ("encoder", "decoder")
        for part, size in (("dim", 64), ("depth", 1), ("heads", 1))
    }
    autoencoder = {**AUTOENCODER, "block_out_channels": [32] * 4, "layers_per_block": 1}
    model = hiergen.create("flextok-d12-d12", **sizes, image_size=32, num_registers=4, autoencoder=autoencoder)
    config = {"enc": {"mask_mode": "causal_last"}, "dec": {"mask_mode": "full", "max_timestep": 1000.0}}
    config |= {"levels": [8, 8, 8, 5, 5, 5], "scaling_factor": 0.3, "sample_posterior": True}
    hub.files[repository, "model.safetensors"] = safetensors.torch.save(flextok_to_official(model))
    with pytest.raises(ValueError, match=f"the repository {repository} holds no file config.json"):
        fetch(name)
    hub.files[repository, "config.json"] = b"[1]"
    with pytest.raises(
        ValueError, match=r"of EPFL-VILAB/.* does not fit: config.json holds a list, expected an object"
    ):
        fetch(name)
    hub.files[repository, "config.json"] = json.dumps(config).encode()
    for path in cache().rglob("config.json"):
        path.unlink()
    capfd.readouterr()
    found = hiergen.from_pretrained(name)
    assert capfd.readouterr().err.count("research only") == 1
    assert (found.config["max_time"], found.config["scaling_factor"], found.config["sample_posterior"]) == (
        1000,
        0.3,
        True,
    )
    assert torch.equal(found.encoder.registers, model.encoder.registers)
    again = hiergen.from_pretrained(name)
    assert "license" not in capfd.readouterr().err
    assert "research only" in again.config["weights_license"]


def test_convert_writes_them_to_a_folder(llamagen, tmp_path, capsys) -> None:
    _, tokenizer, _ = llamagen
    assert main(["convert", GENERATOR, str(tmp_path / "pipeline")]) == 0
    pipe = hiergen.from_pretrained(tmp_path / "pipeline")
    assert torch.equal(pipe.tokenizer.quantizer.codebook, tokenizer.quantizer.codebook)
    assert main(["convert", GENERATOR, "a", "b"]) == 1
    assert f"is downloaded: expected hiergen convert {GENERATOR} TARGET" in capsys.readouterr().err
    assert main(["convert", "mar", "a"]) == 1
    assert "target is missing: expected hiergen convert mar SOURCE TARGET" in capsys.readouterr().err


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_row_is_of_a_preset_and_a_converter_that_exist(name) -> None:
    row, preset = OFFICIAL[name], name.partition(".")[0]
    assert preset in presets()
    if row.by_hand is not None:
        assert not row.files
        return
    module, _, function = row.converter.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert row.repository.count("/") == 1
    assert row.files
    assert set(row.sha256) <= {alternative for file in row.files for alternative in file.split("|")}
    if row.tokenizer is not None:
        with torch.device("meta"):
            pair = [hiergen.create(preset), hiergen.create(row.tokenizer.partition(".")[0], **row.tokenizer_config)]
        pair[0].check_tokenizer(pair[1].specs)
