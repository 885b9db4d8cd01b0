from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import toy
from accelerate import Accelerator, DistributedType

from hiergen.data.stream import SampleStream
from hiergen.training import loop
from hiergen.training.checkpoints import run_state
from hiergen.training.checkpoints.checkpoint import find_checkpoint, load_checkpoint
from hiergen.training.loop import RunInterruptedError, fit
from hiergen.training.optim import OptimConfig
from hiergen.training.processes.launch import check_distributed
from hiergen.training.reporting.run_log import MEASURED, RunLog


def final_state(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    return load_checkpoint(find_checkpoint(out / "checkpoints"))[0]


def assert_same_run(a: Path, b: Path) -> None:
    first, second = final_state(a), final_state(b)
    assert first.keys() == second.keys()
    for stem in first:
        for name, value in first[stem].items():
            assert torch.equal(value, second[stem][name]), f"{stem}: {name}"
    logs = [[json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()] for out in (a, b)]
    for one, two in zip(*logs, strict=True):
        for name in MEASURED:
            one.pop(name, None)
            two.pop(name, None)
        assert one == two


@pytest.mark.parametrize(
    ("stop_at", "changes"),
    [
        (0, {}),
        (4, {"num_workers": 1}),
        (5, {"accumulation": 2, "background_checkpoints": True}),
        (10, {"ema_decay": None}),
        (4, {"optim": OptimConfig(name="muon", lr=1e-2, warmup_samples=16)}),
    ],
)
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(tmp_path, stop_at, changes) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(toy.toy_run(str(whole), **changes))
    with pytest.raises(RunInterruptedError, match="run again to continue") as stopped:
        fit(toy.toy_run(str(parts), task=toy.ToyConfig(stop_at=stop_at), **changes))
    assert stopped.value.signal_number == signal.SIGTERM
    # The signal is part of the task's config here, which a resumed run may not change: put the plain one into its state.
    state = find_checkpoint(parts / "checkpoints") / "state.json"
    _replace_identity(state, toy.ToyConfig(), parts)
    result = fit(toy.toy_run(str(parts), **changes))
    assert result.samples_seen == 96
    assert_same_run(whole, parts)


def _replace_identity(path: Path, task: toy.ToyConfig, out: Path) -> None:
    from hiergen.config import to_json
    from hiergen.files import file_digest, write_json

    state = json.loads(path.read_text())
    state["identity"]["task"] = to_json(task)
    write_json(path, state)
    manifest = json.loads((path.parent / "manifest.json").read_text())
    manifest["state.json"] = {"size": path.stat().st_size, "sha256": file_digest(path)}
    write_json(path.parent / "manifest.json", manifest)


def test_a_finished_run_is_not_trained_again(tmp_path) -> None:
    first = fit(toy.toy_run(str(tmp_path)))
    before = final_state(tmp_path)
    second = fit(toy.toy_run(str(tmp_path)))
    assert second.log == first.log
    assert all(torch.equal(before["toy"][k], v) for k, v in final_state(tmp_path)["toy"].items())


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not(tmp_path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fit(toy.toy_run(str(tmp_path / name), seed=seed))
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert not torch.equal(
        final_state(tmp_path / "a")["toy"]["first.weight"], final_state(tmp_path / "c")["toy"]["first.weight"]
    )


def test_the_global_generator_does_not_matter(tmp_path) -> None:
    fit(toy.toy_run(str(tmp_path / "a")))
    torch.manual_seed(12345)
    torch.randn(7)
    fit(toy.toy_run(str(tmp_path / "b")))
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_no_step_is_taken_from_a_gradient_that_is_not_finite(tmp_path) -> None:
    """Twelve steps of which the last eleven are poisoned leave what one step leaves."""
    one = toy.toy_run(str(tmp_path / "one"), ema_decay=None, max_skipped=100)
    with pytest.raises(FloatingPointError, match=r"11 of 12 steps were skipped, more than half, as a gradient"):
        fit(dataclasses.replace(one, task=toy.ToyConfig(poison=tuple(range(1, 12)))))
    # The model is saved all the same.
    assert (tmp_path / "one" / "model" / "weights.pt").is_file()
    weights = final_state(tmp_path / "one")
    steps = weights["toy.optimizer"]["0.step"]
    assert int(steps) == 1
    assert all(bool(torch.isfinite(value).all()) for value in weights["toy"].values())
    log = [json.loads(line) for line in (tmp_path / "one" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["skipped"] >= 11
    assert log[-1]["toy/loss"] is None


def test_a_run_of_which_half_the_steps_were_skipped_ends_well_and_the_next_does_not(tmp_path) -> None:
    for count in (6, 7):
        config = toy.toy_run(str(tmp_path / str(count)), task=toy.ToyConfig(poison=tuple(range(count))))
        if count == 6:
            fit(config)
        else:
            with pytest.raises(FloatingPointError, match="7 of 12 steps were skipped, more than half"):
                fit(config)
            # So does a run that was finished before.
            with pytest.raises(FloatingPointError, match="7 of 12 steps were skipped"):
                fit(config)


@pytest.mark.parametrize("first_weight", [1.0, 30.0])
def test_too_many_bad_steps_stop_the_run_and_name_the_term(tmp_path, first_weight) -> None:
    task = toy.ToyConfig(poison=tuple(range(12)), first_weight=first_weight)
    config = toy.toy_run(str(tmp_path), task=task, max_skipped=3)
    with pytest.raises(FloatingPointError, match=r"non-finite gradient, at most 3 are tolerated.*toy/loss") as stop:
        fit(config)
    last = SampleStream(toy.Numbers(37), batch_size=8, seed=0, weights=task.build().weights).samples(3)
    shown = ", ".join(str(index) for index, _ in last)
    assert f"began at sample 24: samples {shown} of the dataset, epoch 0" in str(stop.value)


def test_another_configuration_in_the_same_folder_is_refused(tmp_path) -> None:
    fit(toy.toy_run(str(tmp_path)))
    with pytest.raises(
        ValueError, match=r"another configuration: seed was 0, is 1.*may change: samples, checkpoint_every, "
    ) as refused:
        fit(toy.toy_run(str(tmp_path), seed=1))
    assert f"Choose another --out, with --init {str(tmp_path)!r} to start a new run from its weights" in str(
        refused.value
    )
    with pytest.raises(ValueError, match=r"data was 'numbers-37', is 'numbers-38'"):
        fit(toy.toy_run(str(tmp_path), task=toy.ToyConfig(size=38)))
    # How often to save and log may change.
    fit(toy.toy_run(str(tmp_path), checkpoint_every=8, log_every=16))


def test_a_finished_run_goes_on_with_more_samples(tmp_path, capsys) -> None:
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    # Constant after warm-up, the end of the schedule does not matter: what goes on is what was never interrupted.
    optim = toy.OptimConfig(lr=1e-2, warmup_samples=16, schedule="constant")
    fit(toy.toy_run(whole, optim=optim))
    first = fit(toy.toy_run(parts, optim=optim, samples=48))
    result = fit(toy.toy_run(parts, optim=optim))
    assert (first.samples_seen, result.samples_seen) == (48, 96)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert not (tmp_path / "whole" / "history.jsonl").exists()
    assert json.loads((tmp_path / "parts" / "history.jsonl").read_text()) == {
        "samples": 48,
        "note": "samples was 48, is 96",
    }
    # A cosine's end moves, and the run says so.
    fit(toy.toy_run(str(tmp_path / "cosine"), samples=48))
    capsys.readouterr()
    fit(toy.toy_run(str(tmp_path / "cosine"), trackers=(), keep_last=1))
    said = "samples was 48, is 96: the end of the learning rate's schedule moves there; at 48 samples the rate is 0.006891 where it was 0.001"
    assert said in capsys.readouterr().err
    assert json.loads((tmp_path / "cosine" / "history.jsonl").read_text()) == {"samples": 48, "note": said}
    with pytest.raises(ValueError, match=r"samples is 80, but the run in .* has seen 96: give at least as many"):
        fit(toy.toy_run(str(tmp_path / "cosine"), samples=80))


def test_a_run_stopped_on_the_way_to_its_new_end_is_resumed_bit_for_bit(tmp_path) -> None:
    for name, stops in (("whole", ()), ("parts", (72,))):
        out = tmp_path / name
        fit(toy.toy_run(str(out), samples=48))
        for stop in stops:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(loop._Run, "_agree", lambda self, number, at=stop: 15 * (self.state.samples_seen == at))
                with pytest.raises(RunInterruptedError):
                    fit(toy.toy_run(str(out)))
        fit(toy.toy_run(str(out)))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_gradients_of_one_player_do_not_reach_another(tmp_path) -> None:
    """The critic is part of the toy's loss, yet only its own loss may move it."""
    fit(toy.toy_run(str(tmp_path), optim=toy.OptimConfig(lr=1e-2, weight_decay=0.0, schedule="constant")))
    critic = final_state(tmp_path)["critic"]
    # Its own loss pulls its output to 1; the toy's loss would push it to minus infinity.
    assert float(critic["bias"]) > -1


def test_the_exported_model_holds_the_averaged_weights(tmp_path) -> None:
    result = fit(toy.toy_run(str(tmp_path)))
    exported = torch.load(result.model_dir / "weights.pt", weights_only=True)
    saved = final_state(tmp_path)
    assert all(torch.equal(exported[name], value) for name, value in saved["ema"].items())
    assert not torch.equal(exported["first.weight"], saved["toy"]["first.weight"])


def test_every_sample_is_seen_once_an_epoch(tmp_path) -> None:
    stream = SampleStream(toy.Numbers(37), batch_size=8, seed=3)
    pairs = [pair for step in range(37) for pair in stream.samples(step)]
    for epoch in range(8):
        visited = sorted(index for index, e in pairs if e == epoch)
        assert visited == list(range(37))
    assert [i for i, e in pairs if e == 0] != [i for i, e in pairs if e == 1]


def test_the_global_batch_does_not_depend_on_the_number_of_processes() -> None:
    whole = SampleStream(toy.Numbers(37), batch_size=8, seed=3).samples(5)
    shares = [SampleStream(toy.Numbers(37), batch_size=8, seed=3, rank=r, world_size=4).samples(5) for r in range(4)]
    assert [pair for share in shares for pair in share] == whole
    with pytest.raises(ValueError, match="batch_size is 8, expected a multiple of the 3 processes"):
        SampleStream(toy.Numbers(37), batch_size=8, seed=3, world_size=3)
    with pytest.raises(ValueError, match="holds no samples"):
        SampleStream(toy.Numbers(0), batch_size=8, seed=3)


def test_by_weights_every_sample_has_its_share_of_an_epoch() -> None:
    weights = torch.tensor([6.0, 0.5, 1.0, 1.0, 1.5], dtype=torch.float64)
    stream = SampleStream(toy.Numbers(5), batch_size=10, seed=3, weights=weights)
    pairs = [pair for step in range(400) for pair in stream.samples(step)]
    # No two visits have the same draws, though a sample comes more than once in an epoch.
    assert len(set(pairs)) == len(pairs) == 4000
    epochs = [[index for index, _ in pairs[start : start + 5]] for start in range(0, 4000, 5)]
    for index, share in enumerate((weights / 2).tolist()):
        counts = torch.tensor([epoch.count(index) for epoch in epochs])
        assert math.floor(share) <= counts.min() <= counts.max() <= math.ceil(share)
        assert abs(counts.double().mean() - share) < 0.06
    shares = [
        SampleStream(toy.Numbers(5), batch_size=10, seed=3, weights=weights, rank=r, world_size=2).samples(7)
        for r in range(2)
    ]
    assert shares[0] + shares[1] == pairs[70:80]


@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0, 0.0, 1.0], [1.0, float("nan"), 1.0], [1.0, float("inf"), 1.0]])
def test_weights_that_are_not_one_positive_number_per_sample_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match=r"weights .*expected a finite positive number for each of 3 samples"):
        SampleStream(toy.Numbers(3), batch_size=1, seed=0, weights=torch.tensor(weights, dtype=torch.float64))


def test_a_run_visits_samples_by_the_weights_of_its_task(tmp_path, monkeypatch) -> None:
    config = toy.toy_run(str(tmp_path), task=toy.ToyConfig(first_weight=30.0))
    task = toy.ToyTask(config.task)
    monkeypatch.setattr(toy.ToyConfig, "build", lambda _: task)
    fit(config)
    stream = SampleStream(task.dataset, batch_size=8, seed=0, weights=task.weights)
    assert task.seen == [index for step in range(12) for index, _ in stream.samples(step)]
    assert task.seen.count(0) > 30


def test_what_moves_parameters_elsewhere_and_missing_trackers_are_refused(tmp_path) -> None:
    for kind in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        check_distributed(kind)
    with pytest.raises(ValueError, match="set to DEEPSPEED, expected one process or several of data parallelism"):
        check_distributed(DistributedType.DEEPSPEED)
    with pytest.raises(ImportError, match="trackers holds 'no_such_tracker', whose package is not installed"):
        fit(toy.toy_run(str(tmp_path), trackers=("no_such_tracker",)))


def test_curves_and_images_reach_tensorboard(tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = fit(toy.toy_run(str(tmp_path / "run"), trackers=None)).log
    events = EventAccumulator(str(tmp_path / "run" / "run")).Reload()
    found = {event.step: event.value for event in events.Scalars("toy/loss")}
    assert found == pytest.approx({int(line["samples"]): line["toy/loss"] for line in log}, rel=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_pictures_reach_trackio_which_accelerate_hands_numbers_alone(tmp_path, monkeypatch) -> None:
    """With a stand-in for the package, which is not among those of the tests."""
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(Image=lambda array: array))
    handed: list[tuple[dict[str, object], int]] = []
    tracker = SimpleNamespace(name="trackio", log=lambda values, step: handed.append((values, step)))
    log = RunLog(toy.toy_run(str(tmp_path)), SimpleNamespace(trackers=[tracker]))
    log.add_images({"samples": torch.stack([torch.full((3, 2, 4), value) for value in (-1.0, 1.0)])}, 24)
    ((pictures, step),) = handed
    assert step == 24
    assert {name: (x.shape, int(x.min()), int(x.max())) for name, x in pictures.items()} == {
        "samples/0": ((2, 4, 3), 0, 0),
        "samples/1": ((2, 4, 3), 255, 255),
    }


def test_a_log_is_replaced_whole_when_a_run_is_resumed(tmp_path, monkeypatch) -> None:
    """And it is brought to disk before each checkpoint."""
    done, commit = [], run_state.save_checkpoint

    def noted(*args: object) -> Path:
        done.append("saved")
        return commit(*args)

    with monkeypatch.context() as patch:
        patch.setattr(run_state, "save_checkpoint", noted)
        patch.setattr(run_state, "flush", lambda path: done.append(path.name))
        fit(toy.toy_run(str(tmp_path)))
    assert done == ["log.jsonl", "saved"] * 4
    log = tmp_path / "log.jsonl"
    assert len(log.read_text().splitlines()) == 12
    # A line beyond the checkpoint, which a resumed run drops.
    log.write_text(log.read_text() + '{"samples": 1000000000}\n')
    before = log.read_text()

    def killed(*args: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(InterruptedError):
        fit(toy.toy_run(str(tmp_path)))
    assert log.read_text() == before


def test_a_loss_that_grows_tenfold_is_warned_of(tmp_path, caplog) -> None:
    log = RunLog(toy.toy_run(str(tmp_path)), Accelerator(cpu=True))
    for samples, loss in ((8.0, 2.0), (16.0, 1.0), (24.0, 9.9)):
        log.add({"samples": samples, "toy/loss": loss, "critic/loss": 100.0 * samples})
    assert "diverging" not in caplog.text
    log.add({"samples": 32.0, "toy/loss": 10.1})
    assert "the loss is 10.1 at 32 samples, more than 10 times its smallest, 1" in caplog.text


def test_a_collapsed_codebook_is_warned_of_once(tmp_path, caplog) -> None:
    log = RunLog(toy.toy_run(str(tmp_path)), Accelerator(cpu=True))
    shares = [0.5, 0.009, 0.009, 0.2, 0.009, 0.009]
    for number, share in enumerate(shares):
        log.add({"samples": 8.0 * number, "reach_0": share, "reach_1": 0.5, "usage_0": 0.001})
    assert "collapsed" not in caplog.text
    log.add({"samples": 48.0, "reach_0": 0.008, "reach_1": 0.5})
    assert (
        "level 0 chose 0.008 of the codes that it could have chosen at 48 samples, below 0.01 in 3 lines of the log"
        in caplog.text
    )
    caplog.clear()
    log.add({"samples": 56.0, "reach_0": 0.008, "reach_1": 0.5})
    assert "collapsed" not in caplog.text


def test_the_log_says_how_long_data_was_waited_for_and_what_memory_was_used(tmp_path) -> None:
    line = fit(toy.toy_run(str(tmp_path))).log[-1]
    assert 0 < line["data_wait"] < 1
    # Torch alone takes more than this.
    assert 0.05 < line["peak_memory_gib"] < 100


def test_processes_that_would_train_by_themselves_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started, but 1 train together: each would write the same"):
        fit(toy.toy_run(str(tmp_path)), cpu=False)
