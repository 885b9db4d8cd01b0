"""The choice of a backend."""

from __future__ import annotations

import contextlib
import logging

import pytest
import torch

from hiergen.kernels import dispatch
from hiergen.kernels.dispatch import Backend, choose, is_fast_cpu, plain_on_cpu


def _backend(name: str, reason: str | None, *, only_named: bool = False) -> Backend:
    def refuse(request: object, is_named: bool) -> str | None:
        return "it is slow" if only_named and not is_named else reason

    return Backend(name, f"what {name} needs", lambda: name, refuse)


def test_auto_takes_the_first_that_can():
    backends = (
        _backend("a", "there is no GPU"),
        _backend("b", None, only_named=True),
        _backend("c", None),
        _backend("d", None),
    )
    assert choose("fold", backends, None).run() == "c"
    assert choose("fold", backends, None, "b").run() == "b"
    assert choose("fold", (backends[0], Backend("e", "nothing", lambda: "e")), None).run() == "e"


def test_a_named_backend_runs_or_raises():
    backends = (_backend("a", "there is no GPU"), _backend("b", None))
    with pytest.raises(
        RuntimeError, match=r"backend 'a' of fold cannot run: there is no GPU\. It needs what a needs\."
    ):
        choose("fold", backends, None, "a")
    with pytest.raises(ValueError, match="backend is 'z', expected 'auto' or one of 'a', 'b' for fold"):
        choose("fold", backends, None, "z")
    with pytest.raises(RuntimeError, match="no backend of fold can run: not a: there is no GPU"):
        choose("fold", backends[:1], None)


def test_the_choice_is_logged_once(caplog):
    dispatch._log_once.cache_clear()
    backends = (_backend("a", "there is no GPU"), _backend("b", None))
    with caplog.at_level(logging.INFO, logger=dispatch.__name__):
        for _ in range(3):
            choose("fold", backends, None)
    assert caplog.messages == ["fold runs on backend 'b' (not a: there is no GPU)"]


def test_the_plain_forms_are_taken_inside_also_after_an_error_not_behind():
    cpu = torch.device("cpu")
    assert is_fast_cpu(cpu)
    assert not is_fast_cpu(torch.device("meta"))
    with plain_on_cpu():
        with plain_on_cpu():
            pass
        assert not is_fast_cpu(cpu)
    assert is_fast_cpu(cpu)
    with contextlib.suppress(KeyError), plain_on_cpu():
        raise KeyError
    assert is_fast_cpu(cpu)
