"""One run on 1, 2 and 4 CPU processes (gloo), and what happens when one of them fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hiergen.training.checkpoints.checkpoint import find_checkpoint, find_problem, load_checkpoint


@pytest.fixture(scope="module")
def runs(tmp_path_factory, run_beside) -> Path:
    return run_beside("in_processes.py", tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("other", ["2", "4, accumulated", "2-then-1"])
def test_the_number_of_processes_does_not_change_a_run(runs, curve, other) -> None:
    assert (runs / f"{other}.error").read_text() == ""
    expected, found = curve(runs / "1"), curve(runs / other)
    assert len(expected) == len(found) == 12
    for one, two in zip(expected, found, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            assert two[name] == pytest.approx(one[name], rel=1e-6, abs=1e-6), name
    whole, parts = (load_checkpoint(find_checkpoint(runs / name / "checkpoints"))[0] for name in ("1", other))
    for stem in ("toy", "critic", "ema"):
        for name, value in whole[stem].items():
            torch.testing.assert_close(parts[stem][name], value, rtol=0, atol=1e-5)


def test_a_bad_loss_of_one_process_is_a_bad_step_of_all(runs) -> None:
    # The model is saved, and the run ends with an error all the same.
    assert "11 of 12 steps were skipped, more than half" in (runs / "rank 1 is poisoned.error").read_text()
    found, state = load_checkpoint(find_checkpoint(runs / "rank 1 is poisoned" / "checkpoints"))
    assert state["skipped"] == 11
    assert {float(value) for name, value in found["toy.optimizer"].items() if name.endswith(".step")} == {1.0}
    assert all(bool(torch.isfinite(value).all()) for value in found["toy"].values())


def test_a_gradient_of_one_process_that_is_not_finite_is_a_bad_step_of_all(runs, curve) -> None:
    """All losses are finite. The toy's gradient of steps 2, 3 and 7 is NaN, the critic's of 3 and 4: four steps of twelve are bad."""
    name = "a gradient of rank 1 is NaN"
    assert (runs / f"{name}.error").read_text() == ""
    lines = curve(runs / name)
    assert all(line[f"{player}/loss"] is not None for line in lines for player in ("toy", "critic"))
    assert [line.get("skipped", 0) for line in lines] == [0, 0, 1, 2, 3, 3, 3, 4, 4, 4, 4, 4]
    found, state = load_checkpoint(find_checkpoint(runs / name / "checkpoints"))
    assert state["skipped"] == 4
    for player, taken in (("toy", 9), ("critic", 10)):
        entries = found[f"{player}.optimizer"].items()
        assert {float(value) for entry, value in entries if entry.endswith(".step")} == {taken}
        assert all(bool(torch.isfinite(value).all()) for value in found[player].values())
    ranks = [(runs / f"{name}.weights-{rank}").read_text() for rank in range(2)]
    assert ranks[0] == ranks[1]
    assert len(ranks[0].splitlines()) == 4


@pytest.mark.parametrize("how", ["", " in the background"])
def test_a_process_killed_while_another_writes_ends_all_of_them_and_costs_nothing(runs, curve, how) -> None:
    fault = f"rank 1 is killed within a write{how}"
    assert "SIGKILL" in (runs / f"{fault}.error").read_text()
    assert float((runs / f"{fault}.seconds").read_text()) < 30
    published = sorted((runs / fault / "checkpoints").glob("samples-*"))
    assert [find_problem(path) for path in published] == [None] * len(published)
    # It had two before; the third is the one that was being written.
    assert published[1].name == "samples-000000000048"
    assert (runs / f"{fault}, resumed.error").read_text() == ""
    assert curve(runs / f"{fault}, resumed") == curve(runs / "2")
    whole, parts = (
        load_checkpoint(find_checkpoint(runs / name / "checkpoints"))[0] for name in ("2", f"{fault}, resumed")
    )
    for stem, group in whole.items():
        assert all(torch.equal(value, parts[stem][name]) for name, value in group.items()), stem


def test_a_folder_that_another_run_holds_is_refused_by_all_processes(runs) -> None:
    error = (runs / "held.error").read_text()
    assert "another process is writing to" in error
    # Not that the others lost the one that found out.
    assert "ValueError" in error


def test_what_looks_at_a_whole_batch_is_right_on_two_processes(runs, curve) -> None:
    """Entropy of the codebook, use of codes and the memory of it, batch norm, adaptive weight, averages of logits."""
    for name in ("tokenizer 1", "tokenizer 2"):
        assert (runs / f"{name}.error").read_text() == ""
    one, two = curve(runs / "tokenizer 1"), curve(runs / "tokenizer 2")
    # The first step is the same but for the order of sums; after it, rounding that decides between two codes may grow.
    for name in one[0]:
        assert two[0][name] == pytest.approx(one[0][name], rel=2e-4, abs=1e-6), name
    assert {"usage_0", "perplexity_4", "tokenizer/adversarial_scale", "discriminator/lecam"} <= one[0].keys()
    whole, parts = (
        load_checkpoint(find_checkpoint(runs / name / "checkpoints"))[0] for name in ("tokenizer 1", "tokenizer 2")
    )
    assert torch.equal(whole["tokenizer"]["revival.last_used"], parts["tokenizer"]["revival.last_used"])
    for name, value in whole["discriminator"].items():
        torch.testing.assert_close(parts["discriminator"][name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fault", ["rank 0 cannot write", "rank 1 is killed"])
def test_when_one_process_fails_all_end_and_old_checkpoints_stay(runs, fault) -> None:
    error = (runs / f"{fault}.error").read_text()
    assert ("No space left on device" in error) if fault == "rank 0 cannot write" else "SIGKILL" in error
    found = find_checkpoint(runs / fault / "checkpoints")
    assert find_problem(found) is None
    assert load_checkpoint(found)[1]["samples_seen"] >= 48
