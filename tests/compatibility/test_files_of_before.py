"""Files that an earlier hiergen wrote are read by today's, and mean the same."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hiergen.data.codes import CodeSet
from hiergen.data.shapes.building import build_record, find_jobs, source_digest
from hiergen.data.shapes.config import ShapeBatchConfig
from hiergen.data.shapes.dataset import ShapeDataset
from hiergen.data.shapes.preparation import prepare_shapes
from hiergen.data.shapes.records import ShapeFolder
from hiergen.evaluation.features.extractors import EXTRACTORS
from hiergen.evaluation.images.reconstruction import ReconstructionPass, evaluate_reconstructions
from hiergen.files import file_digest
from hiergen.pipelines.encoding import encode_images
from hiergen.pipelines.loading import from_pretrained
from hiergen.training.loop import fit
from hiergen.training.reporting.run_log import MEASURED

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("make_files", HERE / "make_files.py")
assert _spec is not None
assert _spec.loader is not None
make_files = importlib.util.module_from_spec(_spec)
sys.modules["make_files"] = make_files
_spec.loader.exec_module(make_files)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, which is the current folder: their configs name each other by relative paths."""
    folder = Path(shutil.copytree(HERE / "files", tmp_path / "files"))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def expected(files: Path) -> dict[str, torch.Tensor]:
    return load_file(files / "expected.safetensors")


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    known = dict(EXTRACTORS)
    make_files.register_channel_means()
    yield
    EXTRACTORS.clear()
    EXTRACTORS.update(known)


def _never(*_: Any, **__: Any) -> None:
    raise AssertionError("computed again what the files hold")


def _tree(folder: Path) -> dict[str, str]:
    return {str(path): file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_image_pipeline_makes_the_same_picture(expected: dict[str, torch.Tensor]) -> None:
    made = from_pretrained("pipeline")([3], generator=torch.Generator().manual_seed(0), output_type="pt")
    for k, level in enumerate(made.pyramid.levels):
        torch.testing.assert_close(level, expected[f"ids_{k}"])
    torch.testing.assert_close(made.images, expected["images"], rtol=0, atol=1e-4)


def test_a_shape_pipeline_makes_the_same_shape(expected: dict[str, torch.Tensor]) -> None:
    pipe = from_pretrained("shape_pipeline")
    made = pipe([3], generator=torch.Generator().manual_seed(0), **make_files.QUICK)
    for k, level in enumerate(made.pyramid.levels):
        torch.testing.assert_close(level, expected[f"tokens_{k}"], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        field = pipe.tokenizer.decode(made.pyramid).shape(0)(make_files.POINTS)
    torch.testing.assert_close(field, expected["field"], rtol=1e-4, atol=1e-4)


def test_a_killed_run_continues_to_the_same_end(files: Path) -> None:
    assert fit(make_files.train_config(), cpu=True).samples_seen == 48
    resumed, whole = (
        [json.loads(line) for line in (files / name).read_text().splitlines()]
        for name in ("run/log.jsonl", "log_of_whole_run.jsonl")
    )
    assert [line["samples"] for line in resumed] == [32, 40, 48]
    for line, before in zip(resumed, whole[3:], strict=True):
        told = set(before) - set(MEASURED)
        assert {name: line[name] for name in told} == pytest.approx({name: before[name] for name in told}, rel=1e-4)


def test_a_cache_of_codes_is_accepted_and_holds_what_encoding_gives(files: Path, tmp_path: Path) -> None:
    tokenizer, images = from_pretrained("pipeline/tokenizer").eval(), make_files.some_images()
    before = _tree(files / "codes")
    cached = encode_images(tokenizer, images, "codes", flips=True, progress=_never)
    assert _tree(files / "codes") == before
    anew = encode_images(tokenizer, images, tmp_path / "anew", flips=True)
    assert cached.source == anew.source == CodeSet.open("codes").source
    for old, new in zip((*cached.levels, cached.labels), (*anew.levels, anew.labels), strict=True):
        assert torch.equal(old, new)


def test_prepared_shapes_are_kept_and_are_what_preparing_gives(files: Path) -> None:
    settings = make_files.prepare_settings()
    jobs, _ = find_jobs(settings)
    folder = ShapeFolder(files / "shapes")
    assert set(folder.keys) == {job.key for job in jobs}
    for job in jobs:
        old = folder[folder.keys.index(job.key)]
        new = build_record(job, source_digest(job), settings)
        assert old.meta == new.meta
        np.testing.assert_allclose(old.surface, new.surface, atol=1e-6)
        np.testing.assert_array_equal(old.volume_occupancy, new.volume_occupancy)
        np.testing.assert_array_equal(old.near_points, new.near_points)
        np.testing.assert_array_equal(old.farthest, new.farthest)
        np.testing.assert_array_equal(old.view(0), new.view(0))
    batch = ShapeDataset(folder, ShapeBatchConfig(num_points=8, num_queries=8)).batch([(0, 0), (1, 0)], seed=0)
    assert batch["points"].shape == (2, 8, 6)
    summary = prepare_shapes(settings)
    assert (summary.num_prepared, summary.num_reused) == (0, 2)


def test_parts_of_an_evaluation_are_not_computed_again(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _tree(files / "evaluation" / "parts")
    monkeypatch.setattr(ReconstructionPass, "__call__", _never)
    report = evaluate_reconstructions(make_files.evaluation_settings())
    assert report is not None
    assert report["metrics"] == pytest.approx(json.loads((files / "metrics.json").read_text()), rel=1e-5)
    assert _tree(files / "evaluation" / "parts") == before


def test_a_cache_of_references_is_read(files: Path, expected: dict[str, torch.Tensor]) -> None:
    before = _tree(files / "references")
    for name, value in make_files.reference("references").items():
        torch.testing.assert_close(value, expected[f"reference_{name}"])
    assert _tree(files / "references") == before
