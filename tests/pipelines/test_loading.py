"""What `hiergen.from_pretrained` does beside loading: dtypes, compiling, silence; and loading by `DiffusionPipeline`."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path

import jaxtyping
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import dynamic_modules_utils, logging

import hiergen
from hiergen.environment import choose_device
from hiergen.pipelines import loading
from hiergen.pipelines.video import ClassToVideoPipeline
from hiergen.pretrained.packaged import PACKAGED
from hiergen.pyramid import LevelSpec, specs_to_json
from hiergen.registry import create

STEPS = {"num_steps": 2, "guidance_scale": 1.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    tokenizer = create("patches-tiny", video_size=[4, 12, 12], dim=4).eval()
    options = {"dim": 48, "depth": 1, "num_heads": 1}
    generator = create("flow-video-tiny", level_specs=specs_to_json(tokenizer.specs), **options).eval()
    for parameter in generator.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("saved")
    ClassToVideoPipeline(tokenizer=tokenizer, generator=generator).save_pretrained(path)
    return path


def frames(pipe: ClassToVideoPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(1, generator=torch.Generator().manual_seed(0), output_type="pt", **STEPS).frames


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_weights_have_the_dtype_that_is_asked_for(folder, dtype) -> None:
    pipe = hiergen.from_pretrained(folder, dtype=dtype)
    expected = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    assert (pipe.generator.dtype, pipe.tokenizer.dtype) == (expected, expected)
    assert hiergen.from_pretrained(folder / "generator", dtype=dtype).dtype == expected
    parts = hiergen.from_pretrained(folder, dtype={"generator": torch.bfloat16, "default": torch.float32})
    assert (parts.generator.dtype, parts.tokenizer.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("fast", [torch.bfloat16, torch.float32])
def test_auto_takes_what_the_device_is_fast_with(folder, fast, monkeypatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(loading, "choose_dtype", lambda device: (asked.append(device), fast)[1])
    pipe = hiergen.from_pretrained(folder, dtype="auto")
    assert (pipe.generator.dtype, pipe.tokenizer.dtype) == (fast, fast)
    assert asked == [choose_device("auto")]
    parts = hiergen.from_pretrained(folder, dtype={"generator": "auto", "default": torch.float64})
    assert (parts.generator.dtype, parts.tokenizer.dtype) == (fast, torch.float64)


@pytest.mark.parametrize("dtype", ["bf16", 16, {"generator": "bf16"}])
def test_what_is_no_dtype_is_refused(folder, dtype) -> None:
    with pytest.raises(TypeError, match=r"dtype is ('bf16'|16) of type (str|int), expected a torch\.dtype or 'auto'"):
        hiergen.from_pretrained(folder, dtype=dtype)


@pytest.fixture
def counters(monkeypatch) -> Counter[str]:
    """Counts what is compiled from now on."""
    # The run-time check of annotations is no part of a graph.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return torch._dynamo.utils.counters["stats"]


@pytest.mark.parametrize("compiled", ["pipeline", "generator"])
def test_a_compiled_model_gives_the_same(folder, compiled, counters) -> None:
    """With the backend that runs the captured graphs as they are: quick, and broken graphs would show."""
    expected = frames(hiergen.from_pretrained(folder))
    options = {"backend": "eager"}
    if compiled == "pipeline":
        pipe = hiergen.from_pretrained(folder, compile=options)
    else:
        pipe = hiergen.from_pretrained(folder)
        pipe.generator = hiergen.from_pretrained(folder / "generator", compile=options)
    assert counters["unique_graphs"] == 0
    torch.testing.assert_close(frames(pipe), expected, rtol=1e-5, atol=1e-5)
    assert counters["unique_graphs"] >= 1
    saved = hiergen.from_pretrained(folder).generator.state_dict()
    assert list(pipe.generator.state_dict()) == list(saved)


def test_a_tokenizer_is_compiled_where_it_decodes(tmp_path, counters) -> None:
    torch.manual_seed(0)
    sizes = {f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in (("dim", 32), ("depth", 1))}
    tokenizer = create("hieratok-tiny", **sizes, encoder_heads=2, decoder_heads=2).eval()
    tokenizer.save_pretrained(tmp_path)
    compiled = hiergen.from_pretrained(tmp_path, compile={"backend": "eager"}).eval()
    with torch.no_grad():
        pyramid = tokenizer.encode(torch.rand(1, 3, 32, 32) * 2 - 1)
        torch.testing.assert_close(compiled.decode(pyramid), tokenizer.decode(pyramid))
    assert counters["unique_graphs"] >= 1


def _squares(*sides: int) -> list[dict]:
    return specs_to_json([LevelSpec(side**2, (side, side), 4, 16) for side in sides])


GENERATORS = {
    "har-tiny": {
        "level_specs": specs_to_json([LevelSpec(count, None, 4, 16) for count in (1, 1, 2)]),
        "num_ar_tokens": 2,
    },
    "var-tiny": {"level_specs": _squares(1, 2, 3)},
    "rar-tiny": {"level_specs": _squares(2)},
    "maskgit-tiny": {"level_specs": _squares(2), "blocks": "post_norm"},
    "maskgit-tiny, long skips": {"level_specs": _squares(2), "depth": 2},
}


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_of_ids_compiles_its_blocks(name, counters) -> None:
    torch.manual_seed(0)
    sizes = {"dim": 32, "depth": 1, "num_heads": 2} | GENERATORS[name]
    model = create(name.split(",")[0], **sizes).eval()
    torch.nn.init.normal_(model.head.weight, std=0.2)
    labels = torch.tensor([1, 2])

    def generate() -> torch.Tensor:
        return model.generate(labels, rng=torch.Generator().manual_seed(0)).concat()

    expected = generate()
    assert model.compile_sampling(backend="eager") is model
    assert torch.equal(generate(), expected)
    # RAR's tokens come one by one: the lengths of its cache are seen several times before they are taken for a variable.
    for _ in range(3):
        generate()
    graphs = counters["unique_graphs"]
    generate()
    assert 1 <= graphs == counters["unique_graphs"], "what was compiled must serve again"


def test_a_folder_of_data_does_not_hide_the_packaged_model_of_its_name(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits-1d").mkdir()
    assert loading.resolve("digits-1d") == str(PACKAGED / "digits-1d")
    shutil.copy(folder / "model_index.json", tmp_path / "digits-1d")
    assert loading.resolve("digits-1d") == "digits-1d"


def test_loading_draws_no_bars_and_leaves_those_of_others(folder, capsys) -> None:
    hiergen.from_pretrained(folder)
    assert capsys.readouterr().err == "", "neither bars nor warnings, e.g. of annotations"
    assert logging.is_progress_bar_enabled()
    ClassToVideoPipeline.from_pretrained(folder)
    assert "Loading pipeline components" in capsys.readouterr().err
    with pytest.raises(ValueError, match="neither a folder nor a packaged model"):
        hiergen.from_pretrained("nothing-of-this-name")
    assert logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        hiergen.from_pretrained(folder)
        assert not logging.is_progress_bar_enabled(), "another's choice must stay"
    finally:
        logging.enable_progress_bar()


def test_diffusers_finds_the_class_by_the_file_beside_the_config(folder, tmp_path, monkeypatch) -> None:
    expected = frames(hiergen.from_pretrained(folder))
    # Where diffusers keeps copies of code that it runs.
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True)
    assert type(pipe) is ClassToVideoPipeline
    torch.testing.assert_close(frames(pipe), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline")


def test_the_file_is_never_run_by_hiergen(folder, tmp_path) -> None:
    canary = tmp_path / "canary"
    hiergen.from_pretrained(folder).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "pipeline.py").write_text(f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n")
    assert type(hiergen.from_pretrained(tmp_path / "model")) is ClassToVideoPipeline
    assert type(ClassToVideoPipeline.from_pretrained(tmp_path / "model")) is ClassToVideoPipeline
    assert not canary.exists()
    # Folders that were saved before it was written.
    (tmp_path / "model" / "pipeline.py").unlink()
    assert type(hiergen.from_pretrained(tmp_path / "model")) is ClassToVideoPipeline
