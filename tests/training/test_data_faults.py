"""Data that break while a run trains: shards that cannot be read, workers that die, data or code that are others when it resumes."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import tarfile
from pathlib import Path

import pytest
import torch
import toy
from PIL import Image
from torch.utils.data import get_worker_info

from hiergen.data.config import DataConfig
from hiergen.data.stream import explain_worker_death, until_the_signal
from hiergen.training import loop
from hiergen.training.checkpoints import run_state
from hiergen.training.checkpoints.checkpoint import find_checkpoint, load_checkpoint
from hiergen.training.loop import RunInterruptedError, fit
from hiergen.training.tasks.settings import TokenizerTaskConfig

SMALL = {"encoder_dim": 16, "encoder_depth": 1, "decoder_dim": 16, "decoder_depth": 1, "tail_depth": 0}


# PyTorch probes for free file handles when a worker's connection breaks; the signal of its death may interrupt that between two files.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dead_worker_is_explained_and_the_run_goes_on_from_its_checkpoint(tmp_path, monkeypatch) -> None:
    batch = toy.Numbers.batch

    def dying(self, samples, *, seed):
        if get_worker_info() is not None and samples[0][1] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch(self, samples, seed=seed)

    monkeypatch.setattr(toy.Numbers, "batch", dying)
    with pytest.raises(
        ChildProcessError, match=r"a data worker died \(DataLoader worker .*\): .*with a smaller num_workers"
    ):
        fit(toy.toy_run(str(tmp_path / "run"), num_workers=1))
    # The second epoch begins at sample 37; the worker is at most two batches ahead of the step.
    assert load_checkpoint(find_checkpoint(tmp_path / "run" / "checkpoints"))[1]["samples_seen"] == 24
    fit(toy.toy_run(str(tmp_path / "run")))
    fit(toy.toy_run(str(tmp_path / "whole")))
    runs = [load_checkpoint(find_checkpoint(tmp_path / name / "checkpoints"))[0] for name in ("run", "whole")]
    assert all(torch.equal(value, runs[1]["toy"][name]) for name, value in runs[0]["toy"].items())


def test_a_worker_that_dies_while_it_hands_over_a_batch_is_explained_too() -> None:
    """Its connection is lost first; what PyTorch's handler of SIGCHLD raises comes a moment later."""

    def says_so(*_) -> None:
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    def broken():
        yield {}
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        raise ConnectionResetError(104, "Connection reset by peer")

    before = signal.signal(signal.SIGALRM, says_so)
    try:
        with pytest.raises(ChildProcessError, match="a data worker died"), explain_worker_death():
            list(until_the_signal(broken()))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def write_shards(folder: Path, count: int) -> None:
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for index in range(count):
                file = io.BytesIO()
                Image.new("RGB", (32, 32), (10 * index, 100 * shard, 0)).save(file, "png")
                for name, data in ((f"{index}.png", file.getvalue()), (f"{index}.cls", b"0")):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))


def test_a_shard_that_goes_away_is_counted_and_all_of_them_end_the_run(tmp_path, monkeypatch, caplog) -> None:
    write_shards(tmp_path, 4)
    data = DataConfig(source=f"wds:{tmp_path}/*.tar", in_memory=False)
    task = TokenizerTaskConfig(preset="hieratok-tiny", overrides=SMALL, data=data)
    step, losses = loop._Run._step, iter([None, "0.tar", None, "1.tar"])

    def losing(self, batch):
        name = next(losses)
        if name is not None:
            (tmp_path / name).unlink()
        return step(self, batch)

    monkeypatch.setattr(loop._Run, "_step", losing)
    run = toy.toy_run(str(tmp_path / "run"), task=task, samples=64, checkpoint_every=8)
    with pytest.raises(
        ValueError,
        match=r"8 pictures in a row .* cannot be read; the last: shard '.*\d\.tar' cannot be read: No such file",
    ):
        fit(run, cpu=True)
    assert "shard '" in caplog.text
    # Eight pictures are one batch: whole, whole, half of it substituted, half of it again.
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert ['"broken_images": 0.0' in line for line in lines] == [True, True, False, False]
    assert ['"broken_images": 0.5' in line for line in lines] == [False, False, True, True]


def test_a_folder_that_gained_a_picture_is_another_data_set(tmp_path) -> None:
    for index in range(8):
        Image.new("RGB", (32, 32), (30 * index, 0, 0)).save(tmp_path / f"{index}.png")
    data = DataConfig(source=str(tmp_path), in_memory=False)
    task = TokenizerTaskConfig(preset="hieratok-tiny", overrides=SMALL, data=data)
    run = toy.toy_run(str(tmp_path / "run"), task=task, samples=8)
    fit(run, cpu=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "8.png")
    with pytest.raises(ValueError, match=r"holds a run of another configuration: data was '.*', is '"):
        fit(run, cpu=True)


def test_a_picture_replaced_by_another_of_the_same_size_is_other_data(tmp_path, caplog) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(8):
        Image.new("RGB", (32, 32), (30 * index, 0, 0)).save(folder / f"{index}.bmp")
    # One that cannot be read is nothing new.
    (folder / "8.bmp").write_bytes(b"broken")
    data = DataConfig(source=str(folder), in_memory=False)
    task = TokenizerTaskConfig(preset="hieratok-tiny", overrides=SMALL, data=data)
    for check in ("sampled", "none"):
        fit(toy.toy_run(str(tmp_path / check), task=task, samples=8, data_check=check), cpu=True)
    fit(toy.toy_run(str(tmp_path / "sampled"), task=task, samples=8), cpu=True)
    assert "not compared" not in caplog.text
    Image.new("RGB", (32, 32), (0, 0, 99)).save(folder / "3.bmp")
    with pytest.raises(
        ValueError,
        match=r"another configuration: the content of the data changed, under the same names and of the same size. Choose",
    ):
        fit(toy.toy_run(str(tmp_path / "sampled"), task=task, samples=8), cpu=True)
    # What was not looked at before cannot be compared; nor what is not to be looked at now, which is said.
    fit(toy.toy_run(str(tmp_path / "none"), task=task, samples=8), cpu=True)
    assert "not compared" not in caplog.text
    fit(toy.toy_run(str(tmp_path / "sampled"), task=task, samples=8, data_check="none"), cpu=True)
    assert "the content of the data is not compared: data_check was 'sampled', is 'none'" in caplog.text


def test_a_run_of_an_earlier_version_goes_on(tmp_path, monkeypatch) -> None:
    """What a checkpoint of November 2026 says of its run, before the content of data was looked at, and a field that came later."""
    data = DataConfig(source=str(tmp_path / "pictures"), in_memory=False)
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "pictures" / "0.png")
    task = TokenizerTaskConfig(preset="hieratok-tiny", overrides=SMALL, data=data)
    config = toy.toy_run(str(tmp_path / "run"), task=task, samples=8)
    fit(config, cpu=True)
    saved = json.loads(Path(__file__).with_name("identity_2026_11.json").read_text())
    # The folder is another in every run of this test.
    saved["task"]["data"]["source"] = data.source
    monkeypatch.setattr(run_state, "load_checkpoint", with_identity(saved))
    fit(config, cpu=True)
    del saved["task"]["pixel_weight"], saved["optim"]["no_decay"]
    fit(config, cpu=True)
    # Such a field has its default in the old run.
    for change, name in (
        ({"optim": dataclasses.replace(config.optim, no_decay=("head",))}, "optim.no_decay was [], is ['head']"),
        ({"task": dataclasses.replace(task, pixel_weight=2.0)}, "task.pixel_weight was 1.0, is 2.0"),
    ):
        with pytest.raises(ValueError, match="another configuration") as refused:
            fit(dataclasses.replace(config, **change), cpu=True)
        assert name in str(refused.value)


def with_identity(identity):
    """Return what reads checkpoints, as if they had been saved by a run of that identity."""

    def load(path):
        tensors, state = load_checkpoint(path)
        return tensors, state | {"identity": identity}

    return load


def test_changed_code_is_warned_of(tmp_path, monkeypatch, caplog) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_agree", lambda self, number: 15)
        patch.setattr(run_state, "_versions", lambda: {"hiergen": "0123456789ab", "torch": torch.__version__})
        with pytest.raises(RunInterruptedError):
            fit(toy.toy_run(str(tmp_path)))
    fit(toy.toy_run(str(tmp_path)))
    assert "the code has changed since the checkpoint was written (hiergen was 0123456789ab, is " in caplog.text
    assert "torch was" not in caplog.text
    caplog.clear()
    fit(toy.toy_run(str(tmp_path)))
    assert "the code has changed" not in caplog.text
