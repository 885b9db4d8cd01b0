"""One run on 1, 2 and 4 CPU processes (gloo), and what happens when one of them fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hiergen.training.checkpoint import find_checkpoint, find_problem, load_checkpoint


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
    assert (runs / "rank 1 is poisoned.error").read_text() == ""
    found, state = load_checkpoint(find_checkpoint(runs / "rank 1 is poisoned" / "checkpoints"))
    assert state["skipped"] == 11
    assert {float(value) for name, value in found["toy.optimizer"].items() if name.endswith(".step")} == {1.0}
    assert all(bool(torch.isfinite(value).all()) for value in found["toy"].values())


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
