"""Parameters shared out over two CPU processes (gloo) against whole ones, and checkpoints that go from one to the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import hiergen
from hiergen.registry import create, list_presets
from hiergen.training.checkpoints.checkpoint import find_checkpoint, load_checkpoint
from hiergen.training.processes.sharding import launcher_shards, without_launchers_sharding


@pytest.fixture(scope="module")
def runs(tmp_path_factory, run_beside) -> Path:
    return run_beside("in_shares.py", tmp_path_factory.mktemp("runs"))


def checkpoint(out: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, object]]:
    return load_checkpoint(find_checkpoint(out / "checkpoints"))


PAIRS = [
    ("toy none", "toy full", 12),
    ("toy none", "toy none, then full", 12),
    ("toy none", "toy full, then none", 12),
    ("flow none", "flow full", 6),
    ("loops none", "loops full", 6),
    ("gan none", "gan full", 2),
]


@pytest.mark.parametrize(("whole", "shared", "num_lines"), PAIRS)
def test_sharing_out_does_not_change_a_run(runs, curve, whole, shared, num_lines) -> None:
    for name in (whole, shared):
        assert (runs / f"{name}.error").read_text() == ""
    expected, found = curve(runs / whole), curve(runs / shared)
    assert len(expected) == len(found) == num_lines
    for one, two in zip(expected, found, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            # The norm of a gradient is a sum in another order.
            tolerance = 1e-5 if name.endswith("grad_norm") else 1e-6
            assert two[name] == pytest.approx(one[name], rel=tolerance, abs=1e-6), name
    tensors, others = checkpoint(runs / whole)[0], checkpoint(runs / shared)[0]
    assert tensors.keys() == others.keys()
    for stem, group in tensors.items():
        assert group.keys() == others[stem].keys()
        for name, value in group.items():
            torch.testing.assert_close(others[stem][name], value, rtol=1e-5, atol=1e-5, msg=f"{stem}: {name}")
    # Clipping by the norm of all shares was put to the test.
    assert whole != "toy none" or max(line["toy/grad_norm"] for line in expected) > 1


def test_each_process_holds_its_share(runs) -> None:
    whole = json.loads((runs / "flow none.held-0").read_text())
    shares = [json.loads((runs / f"flow full.held-{rank}").read_text()) for rank in range(2)]
    for name, count in whole.items():
        assert sum(share[name] for share in shares) == count
        assert max(share[name] for share in shares) < 0.6 * count, name


def test_the_models_that_are_left_are_those_of_a_run_with_whole_parameters(runs) -> None:
    for kind in ("model", "best"):
        found, expected = (
            hiergen.from_pretrained(str(runs / name / kind)).state_dict() for name in ("flow full", "flow none")
        )
        for name, value in expected.items():
            # A step of Adam divides by the root of small squares: rounding moved one of 4,096 numbers by 1.8e-6.
            torch.testing.assert_close(found[name], value, rtol=0, atol=2e-5)
    averages = checkpoint(runs / "flow full")[0]["ema"]
    model = hiergen.from_pretrained(str(runs / "flow full" / "model")).state_dict()
    assert all(torch.equal(model[name], value) for name, value in averages.items())
    notes = [json.loads((runs / name / "best" / "best.json").read_text()) for name in ("flow full", "flow none")]
    assert notes[0]["samples_seen"] == notes[1]["samples_seen"]


def test_a_bad_share_of_a_gradient_is_a_bad_step_of_all(runs) -> None:
    """Eleven of twelve gradients of the second process are NaN, all but one with finite losses; twice the critic's are too."""
    assert "11 of 12 steps were skipped, more than half" in (runs / "poisoned.error").read_text()
    found, state = checkpoint(runs / "poisoned")
    assert state["skipped"] == 11
    for player, taken in (("toy", 1.0), ("critic", 10.0)):
        steps = {float(value) for name, value in found[f"{player}.optimizer"].items() if name.endswith(".step")}
        assert steps == {taken}
        assert all(bool(torch.isfinite(value).all()) for value in found[player].values())


def test_what_cannot_be_shared_out_is_refused(runs) -> None:
    error = (runs / "revived.error").read_text()
    assert "sharding is 'full', expected 'none' for this task: codebook.revive_after writes to the codebook" in error


def test_a_launcher_that_was_told_to_shard_is_heard(monkeypatch) -> None:
    assert not launcher_shards()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert launcher_shards()
    with without_launchers_sharding():
        assert not launcher_shards()
    assert launcher_shards()
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(ValueError, match="fsdp_offload_params, expected false"):
        launcher_shards()


@pytest.mark.parametrize("name", [name for name in list_presets("*") if name.endswith("-tiny")])
def test_every_model_of_blocks_names_them(name) -> None:
    """What is shared out block by block: the greater part of the parameters of a transformer, and no scalar anywhere."""
    with torch.device("meta"):
        model = create(name)
    assert all(parameter.ndim for parameter in model.parameters())
    named = {block for part in model.modules() for block in getattr(part, "_no_split_modules", None) or ()}
    found = {type(module).__name__ for module in model.modules()}
    assert named <= found
