from __future__ import annotations

import os
import signal
import threading

import pytest
import torch
import toy

import hiergen
from hiergen.training import loop
from hiergen.training.checkpoints import run_state
from hiergen.training.checkpoints.checkpoint import find_checkpoint, load_checkpoint
from hiergen.training.loop import fit


def test_what_is_written_in_the_background_is_the_moment_it_was_asked_for(tmp_path, monkeypatch) -> None:
    """Every checkpoint is held back until the run has taken another two steps, and equals that of a run that waits."""
    step, save = loop._Run._step, run_state.save_checkpoint
    progress, steps, ahead = threading.Condition(), [0], []

    def stepping(self, batch):
        terms = step(self, batch)
        with progress:
            steps[0] += 1
            progress.notify_all()
        return terms

    def late(folder, samples_seen, *rest):
        at = samples_seen // 8
        with progress:
            assert progress.wait_for(lambda: steps[0] >= min(at + 2, 12), timeout=60)
            ahead.append(steps[0] - at)
        return save(folder, samples_seen, *rest)

    fit(toy.toy_run(str(tmp_path / "front"), keep_last=9))
    monkeypatch.setattr(loop._Run, "_step", stepping)
    monkeypatch.setattr(run_state, "save_checkpoint", late)
    fit(toy.toy_run(str(tmp_path / "back"), keep_last=9, background_checkpoints=True))
    assert min(ahead[:-1]) >= 2
    names = sorted(path.name for path in (tmp_path / "front" / "checkpoints").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "back" / "checkpoints").iterdir())
    for name in names:
        (front, a), (back, b) = (load_checkpoint(tmp_path / side / "checkpoints" / name) for side in ("front", "back"))
        assert a["samples_seen"] == b["samples_seen"]
        assert all(torch.equal(value, back[stem][key]) for stem in front for key, value in front[stem].items())


@pytest.mark.parametrize("fails_at", [24, 96])
def test_a_failure_in_the_background_ends_the_run_and_names_the_checkpoint(tmp_path, monkeypatch, fails_at) -> None:
    save = run_state.save_checkpoint

    def fail(folder, samples_seen, *rest):
        if samples_seen == fails_at:
            raise OSError(28, "No space left on device")
        return save(folder, samples_seen, *rest)

    monkeypatch.setattr(run_state, "save_checkpoint", fail)
    with pytest.raises(
        OSError, match=rf"the checkpoint at {fails_at} samples was not written: OSError: .* No space left"
    ):
        fit(toy.toy_run(str(tmp_path), background_checkpoints=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_two_runs_do_not_write_one_folder_and_a_killed_one_holds_nothing(tmp_path, num_workers) -> None:
    fit(toy.toy_run(str(tmp_path / "whole")))
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        step = loop._Run._step

        def halting(self, batch):
            if self.state.samples_seen == 32:
                os.write(writing, b"x")
                signal.pause()
            return step(self, batch)

        loop._Run._step = halting
        try:
            fit(toy.toy_run(str(tmp_path / "run"), num_workers=num_workers))
        finally:
            os._exit(1)
    # With this end open, a child that failed early would be waited for without end.
    os.close(writing)
    assert os.read(reading, 1) == b"x", "the forked run ended before its 32nd sample"
    with pytest.raises(ValueError, match=r"another process is writing to '.*run': wait for its end, or choose another"):
        fit(toy.toy_run(str(tmp_path / "run")))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    # At once, though a worker of the killed process may live on for some seconds.
    fit(toy.toy_run(str(tmp_path / "run")))
    runs = [load_checkpoint(find_checkpoint(tmp_path / name / "checkpoints"))[0] for name in ("run", "whole")]
    assert all(torch.equal(value, runs[1]["toy"][name]) for name, value in runs[0]["toy"].items())


def test_a_change_anywhere_in_the_package_is_noticed(tmp_path, monkeypatch) -> None:
    module = tmp_path / "nn" / "thing.py"
    module.parent.mkdir()
    module.write_text("x = 1\n")
    monkeypatch.setattr(hiergen, "__file__", str(tmp_path / "__init__.py"))
    before = run_state._versions.__wrapped__()
    module.write_text("x = 2\n")
    after = run_state._versions.__wrapped__()
    assert before["hiergen"] != after["hiergen"]
    assert before["torch"] == after["torch"]
