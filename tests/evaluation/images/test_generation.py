from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState, debug_launcher
from PIL import Image

from hiergen.data.config import DataConfig
from hiergen.evaluation.comparison import compare
from hiergen.evaluation.images.generation import evaluate_generations, example_rows
from hiergen.evaluation.images.sampling import TokenSource, class_labels
from hiergen.evaluation.protocol import small_sample_warning
from hiergen.evaluation.settings import DistanceConfig, ExtractorConfig, GfidSettings, PassConfig, SamplingConfig
from hiergen.generators.flow.sampling import FlowSettings
from hiergen.generators.level_ar.settings import LevelARSettings
from hiergen.generators.masked.cascade import MaskedCascadeSettings
from hiergen.generators.masked.ids.settings import MaskedIdsSettings
from hiergen.generators.masked.settings import MaskedARSettings
from hiergen.generators.next_scale.settings import NextScaleSettings
from hiergen.generators.random_order.model import RandomOrderARSettings
from hiergen.generators.sequences.settings import SequenceSettings, TextSettings
from hiergen.pipelines.encoding import tokenizer_fingerprint
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.registry import create


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A pipeline with random weights, and a folder for caches."""
    root = tmp_path_factory.mktemp("gfid")
    torch.manual_seed(0)
    generator, tokenizer = create("har-tiny"), create("restok-tiny")
    for parameter in generator.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    ClassToImagePipeline(tokenizer=tokenizer, generator=generator).save_pretrained(root / "pipeline")
    return root


def settings(folder: Path, name: str, **changes: Any) -> GfidSettings:
    passes = PassConfig(batch_size=changes.pop("batch_size", 5), part_size=4, device="cpu")
    plain = GfidSettings(
        pipeline=str(folder / "pipeline"),
        out=str(folder / name),
        num_images=16,
        extractor=ExtractorConfig("mean-color"),
        keep="npz",
        cache=str(folder / "cache"),
        distances=DistanceConfig(resamples=4),
        passes=passes,
    )
    return dataclasses.replace(plain, **changes)


def in_processes(count: int, chosen: GfidSettings) -> None:
    if count == 1:
        evaluate_generations(chosen)
        return
    # Children start from a parent that knows of no other process.
    PartialState._reset_state()
    debug_launcher(functools.partial(evaluate_generations, chosen), num_processes=count)


def test_files_do_not_depend_on_the_number_of_processes(folder: Path) -> None:
    """Bytes are equal on 1, 2 and 4 processes; another batch size may move a pixel on a rounding tie by one of 255."""
    files = []
    # As many as a forked process takes.
    torch.set_num_threads(1)
    for processes in (1, 2, 4):
        in_processes(processes, settings(folder, f"run-{processes}", batch_size=3))
        files.append((folder / f"run-{processes}" / "samples.npz").read_bytes())
    assert files[0] == files[1] == files[2]
    in_processes(1, settings(folder, "singles", batch_size=1))
    pair = []
    for name in ("run-1", "singles"):
        with np.load(folder / name / "samples.npz") as stored:
            pair.append(stored["arr_0"].astype(np.int64))
    assert pair[0].shape == (16, 32, 32, 3)
    assert len(np.unique(pair[0].reshape(16, -1), axis=0)) == 16
    difference = np.abs(pair[0] - pair[1])
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_exact_files_depend_on_neither_batch_nor_processes(folder: Path) -> None:
    """Samples and every stored part are the same bytes, on one thread or two; how the reference was read included."""
    found = []
    # What the forked processes inherit, and cannot use.
    torch.set_num_threads(2)
    for processes, batch in ((1, 1), (2, 3), (4, 5)):
        name = f"exact-{processes}"
        passes = PassConfig(batch_size=batch, part_size=4, device="cpu", exact=2)
        cache = str(folder / f"cache-{name}")
        in_processes(processes, settings(folder, name, passes=passes, cache=cache, data=DataConfig(split="test")))
        files = [folder / name / "samples.npz", *sorted((folder / name / "parts").glob("part-*"))]
        metrics = json.loads((folder / name / "report.json").read_text())["metrics"]
        found.append(([(file.name, file.read_bytes()) for file in files], metrics))
    assert len(found[0][0]) == 5
    for files, metrics in found[1:]:
        assert files == found[0][0]
        assert metrics == pytest.approx(found[0][1], rel=1e-6, abs=1e-9)
    # The order of the models' work is part of what was evaluated.
    with pytest.raises(ValueError, match=r"holds the parts of another evaluation \(exact differ\)"):
        evaluate_generations(settings(folder, "exact-1", batch_size=2))


def test_a_stopped_run_continues_and_samples_are_read_back(folder: Path) -> None:
    report = evaluate_generations(settings(folder, "whole"))
    assert report is not None
    part = folder / "whole" / "parts" / "part-00002.safetensors"
    before = part.read_bytes()
    others = {path: path.stat().st_mtime_ns for path in part.parent.glob("part-*") if path != part}
    part.unlink()
    again = evaluate_generations(settings(folder, "whole"))
    assert again is not None
    assert again["metrics"] == report["metrics"]
    assert part.read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in others} == others
    # The exported samples give the figures of the run that made them.
    samples = evaluate_generations(
        settings(folder, "read", samples=str(folder / "whole" / "samples.npz"), num_images=0, keep="png")
    )
    assert samples is not None
    assert samples["metrics"] == pytest.approx(report["metrics"], rel=1e-4)
    folder_of_png = evaluate_generations(
        settings(folder, "png", samples=str(folder / "read" / "samples"), num_images=0, keep="none")
    )
    assert folder_of_png is not None
    assert folder_of_png["metrics"] == pytest.approx(report["metrics"], rel=1e-4)
    # So does the exported reference, which knows moments alone.
    moments = evaluate_generations(settings(folder, "moments", reference=str(folder / "whole" / "reference.npz")))
    assert moments is not None
    assert moments["metrics"]["gFD-mean-color"] == pytest.approx(report["metrics"]["gFD-mean-color"], rel=1e-4)
    assert any("no kernel distance" in warning for warning in moments["warnings"])
    same = compare(folder / "whole", folder / "read", resamples=10)
    assert same["metrics"]["gFD-mean-color"]["is_clear"] is False
    stored = json.loads((folder / "whole" / "report.json").read_text())
    assert torch.__version__.startswith(stored["environment"]["versions"]["torch"])
    # Sixteen images, 3 channels: enough for one.
    assert not any("mostly bias" in warning for warning in stored["warnings"])
    assert len(small_sample_warning("the set", 14, 3)) == 1
    with pytest.raises(ValueError, match=r"holds the parts of another evaluation \(seed differ\)"):
        evaluate_generations(settings(folder, "whole", seed=1))


def test_distances_to_other_references_or_of_other_counts_are_not_passed_off_as_comparable(folder: Path) -> None:
    evaluate_generations(settings(folder, "sixteen"))
    evaluate_generations(settings(folder, "twelve", num_images=12))
    fewer = compare(folder / "sixteen", folder / "twelve", resamples=4)
    assert [text for text in fewer["warnings"] if "gFD-mean-color is of 16 and of 12 items" in text]
    assert compare(folder / "sixteen", folder / "sixteen", resamples=4)["warnings"] == []
    # The same statistics from a file are the same reference, the test split is another.
    evaluate_generations(settings(folder, "file", reference=str(folder / "sixteen" / "reference.npz")))
    assert compare(folder / "sixteen", folder / "file", resamples=4)["warnings"] == []
    evaluate_generations(settings(folder, "test", data=DataConfig(split="test")))
    with pytest.raises(ValueError, match=r"differ in reference: 'digits' and 'digits', other statistics"):
        compare(folder / "sixteen", folder / "test")


def test_examples_stand_in_rows_of_named_classes(folder: Path, monkeypatch) -> None:
    pipe = ClassToImagePipeline.from_pretrained(folder / "pipeline")
    pipe.generator.register_to_config(id2label={str(k): f"n{k}, {k}|x" for k in range(9)})
    pipe.save_pretrained(folder / "named")
    drawn: list[Any] = []
    monkeypatch.setattr(
        "hiergen.evaluation.report.save_image_grid", lambda *rows, **options: drawn.append((rows, options))
    )
    chosen = settings(folder, "names", pipeline=str(folder / "named"), num_images=12)
    report = evaluate_generations(chosen)
    assert report is not None
    assert drawn[0][1]["row_labels"] == [*[f"n{k}" for k in range(9)], "9"]
    assert [len(row) for row in drawn[0][0][1]] == [2, 2, *[1] * 8]
    assert report["classes"] == [f"n{k}, {k}|x" for k in range(9)]
    assert "| classes | 9 classes: n0, n1, n2, n3, n4, ... |" in (folder / "names" / "report.md").read_text()
    assert report["models"] == {
        "generator": tokenizer_fingerprint(pipe.generator),
        "tokenizer": tokenizer_fingerprint(pipe.tokenizer),
    }


def test_examples_of_many_classes_say_the_first_and_the_last() -> None:
    images = torch.arange(40).view(40, 1, 1, 1)
    tokens = TokenSource.__new__(TokenSource)
    tokens.names = {0: "tench, Tinca", 31: "ostrich"}
    tokens.labels = torch.tensor
    found = example_rows(images, tokens, range(40))
    assert list(found) == ["0: tench to 15", "1: 16 to ostrich"]
    assert found["1: 16 to ostrich"].flatten().tolist() == list(range(16, 32))
    assert list(example_rows(images[:20], None, range(20))) == ["0"]


def test_labels_are_balanced_or_independent() -> None:
    assert class_labels(range(3, 13), 10, "balanced", 0).sort().values.tolist() == list(range(10))
    drawn = class_labels(range(2000), 4, "iid", 0)
    assert torch.equal(class_labels(range(500, 510), 4, "iid", 0), drawn[500:510])
    assert (drawn.bincount(minlength=4) - 500).abs().max() < 80


def test_every_setting_of_every_generator_can_be_given() -> None:
    """Otherwise a model could not be evaluated as it was published."""
    known = {field.name for field in dataclasses.fields(SamplingConfig)}
    classes = (
        FlowSettings, LevelARSettings, MaskedARSettings, MaskedCascadeSettings, MaskedIdsSettings, NextScaleSettings,
        RandomOrderARSettings, SequenceSettings, TextSettings,
    )  # fmt: skip
    found = {field.name for kind in classes for field in dataclasses.fields(kind)}
    # These two do not change what is drawn, or change how many levels there are.
    assert found - {"use_cache", "num_levels"} == known


def test_bad_samples_are_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    def refuse(match: str, **changes: Any) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            evaluate_generations(settings(folder, "refused", **changes))
        assert not (folder / "refused" / "parts").exists()

    refuse(
        "the weights of extractor 'inception' are not at",
        extractor=ExtractorConfig("inception", str(tmp_path / "none.pth")),
    )
    refuse("unknown extractor 'digit'; did you mean digits", extractor=ExtractorConfig("digit"))
    refuse("the evaluation holds 9 images, at least 10", num_images=9)
    refuse("does not exist, expected an .npz", reference=str(tmp_path / "none.npz"))
    refuse("holds no picture", samples=str(tmp_path))
    np.savez(tmp_path / "stats.npz", mu=np.zeros(3), sigma=np.eye(2))
    refuse("the statistics are of another extractor", reference=str(tmp_path / "stats.npz"))
    np.savez(tmp_path / "nan.npz", mu=np.full(3, np.nan), sigma=np.eye(3))
    refuse("mu and sigma of .* hold NaN", reference=str(tmp_path / "nan.npz"))
    np.savez(tmp_path / "float.npz", arr_0=np.zeros((12, 8, 8, 3), np.float32))
    refuse("float32 of shape .*, expected uint8", samples=str(tmp_path / "float.npz"))
    refuse("expected reference statistics `mu` and `sigma`", reference=str(tmp_path / "float.npz"))
    (tmp_path / "text.npz").write_text("no archive")
    refuse("is no .npz file", samples=str(tmp_path / "text.npz"))
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for index, size in enumerate((8, 8, 9)):
        Image.new("RGB", (size, 8)).save(mixed / f"{index}.png")
    refuse("several sizes: 0.png is 8 x 8, 2.png is 9 x 8", samples=str(mixed))
