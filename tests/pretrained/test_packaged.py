"""Models by name: the packaged ones load without the Hub, and a mistyped name is an error at once."""

from __future__ import annotations

import huggingface_hub
import pytest
import torch

import hiergen
from hiergen.cli.info import main as info
from hiergen.pipelines.loading import resolve
from hiergen.pretrained.packaged import PACKAGED, packaged_models


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"the Hub was asked for {arguments}")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)


@pytest.mark.parametrize("name", [folder.name for folder in packaged_models()])
def test_a_packaged_model_loads_by_name(name: str) -> None:
    by_name, by_folder = hiergen.from_pretrained(name), hiergen.from_pretrained(PACKAGED / name)
    assert type(by_name) is type(by_folder)
    for part in ("tokenizer", "generator") if (PACKAGED / name / "model_index.json").is_file() else ("",):
        ours, theirs = ((getattr(model, part) if part else model).state_dict() for model in (by_name, by_folder))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_folder_here_comes_before_a_packaged_model(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    hiergen.create("restok-tiny").save_pretrained(tmp_path / "digits-1d")
    monkeypatch.chdir(tmp_path)
    assert type(hiergen.from_pretrained("digits-1d")).__name__ == "ResTok"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits-1", r"'digits-1' is neither a folder nor a packaged model nor .*; did you mean digits-1d"),
        ("hieratok-tinny", r"did you mean hieratok-tiny"),
        ("restok-tiny", r"it is a preset without weights: use hiergen\.create\('restok-tiny'\)"),
    ],
)
def test_a_mistyped_name_is_an_error_at_once(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hiergen.from_pretrained(name)


def test_only_a_name_with_an_owner_asks_the_hub() -> None:
    with pytest.raises(AssertionError, match=r"the Hub was asked for \('nobody/nothing', 'model_index.json'\)"):
        hiergen.from_pretrained("nobody/nothing")


def test_the_repository_of_official_weights_is_as_good_as_their_name(capsys) -> None:
    assert resolve("cartesia-ai/hnet_1stage_L") == "hnet-1stage-l.fineweb-edu"
    assert resolve("FoundationVision/LlamaGen") == "FoundationVision/LlamaGen", (
        "the weights of several models are there"
    )
    with pytest.raises(
        ValueError, match=r"'hnet-1stage-l.fineweb-edu' cannot be downloaded by name: get its \.pt file"
    ):
        hiergen.from_pretrained("cartesia-ai/hnet_1stage_L")
    info(["cartesia-ai/hnet_2stage_XL"])
    shown = capsys.readouterr().out
    assert "hnet-2stage-xl.fineweb-edu" in shown
    assert "1,603,492,224" in shown
