from __future__ import annotations

import sys
import types

import pytest
import torch

import hiergen
from hiergen.pipelines.loading import from_pretrained
from hiergen.registry import (
    MODEL_CLASSES,
    PIPELINE_CLASSES,
    Preset,
    create,
    get_preset,
    list_presets,
    model_class,
    pipeline_class,
    preset_table,
    presets,
    register,
)
from hiergen.tokenizers.restok.model import ResTok


def test_every_preset_builds_on_the_meta_device_and_names_its_source() -> None:
    """Constructors must accept every shipped configuration; no weights are allocated."""
    for name, preset in presets().items():
        assert preset.model in MODEL_CLASSES
        assert len(preset.source) > 10
        with torch.device("meta"):
            model = create(name)
        assert sum(parameter.numel() for parameter in model.parameters()) > 0
        assert sum(spec.num_tokens for spec in model.specs) > 0 or model.is_text


def test_every_class_of_the_tables_is_a_public_name() -> None:
    for name, module in {**MODEL_CLASSES, **PIPELINE_CLASSES}.items():
        assert name in hiergen.__all__
        assert getattr(hiergen, name).__module__ == module


def test_listing_takes_patterns() -> None:
    assert "restok-tiny" in list_presets("restok*")
    assert list_presets("restok*", kind="generator") == []
    assert "har-tiny" in list_presets(kind="generator")


def test_overrides_replace_entries() -> None:
    assert create("har-tiny", depth=1).config.depth == 1


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'restok-tin'; did you mean .*restok-tiny"):
        get_preset("restok-tin")
    with pytest.raises(ValueError, match="unknown model class 'ResTik'; did you mean ResTok"):
        model_class("ResTik")
    with pytest.raises(ValueError, match="unknown pipeline class 'os'"):
        pipeline_class("os")


class MyTok(ResTok):
    """Somebody else's tokenizer."""


def test_a_class_of_ones_own_is_known_by_name(monkeypatch, tmp_path) -> None:
    # The module of a test is not imported by its name; a user's is.
    monkeypatch.setitem(sys.modules, MyTok.__module__, types.SimpleNamespace(MyTok=MyTok))
    own = {"mine-tiny": Preset("MyTok", get_preset("restok-tiny").config, "here")}
    try:
        # Twice, as a notebook does.
        register(MyTok, "tokenizer", own)
        register(MyTok, "tokenizer", own)
        assert "mine-tiny" in list_presets(kind="tokenizer")
        create("mine-tiny").save_pretrained(tmp_path)
        assert type(from_pretrained(tmp_path)) is MyTok
        # Pipelines look their parts up in the package.
        assert hiergen.MyTok is MyTok
    finally:
        MODEL_CLASSES.pop("MyTok")
        preset_table("tokenizer").pop("mine-tiny")
        vars(hiergen).pop("MyTok", None)
    with pytest.raises(AttributeError, match="no attribute 'MyTok'"):
        _ = hiergen.MyTok


@pytest.mark.parametrize(
    ("model", "named", "message"),
    [
        (MyTok, {"mine": Preset("ResTok", {}, "here")}, "preset 'mine' is of 'ResTok', expected 'MyTok'"),
        (MyTok, {"restok-tiny": Preset("MyTok", {}, "here")}, "the preset 'restok-tiny' is taken by ResTok"),
        (ResTok, {}, r"the model class 'ResTok' is taken by hiergen\.tokenizers\.restok"),
    ],
)
def test_names_of_hiergen_are_not_given_away(model, named, message) -> None:
    with pytest.raises(ValueError, match=message):
        register(model, "tokenizer", named)
    assert "MyTok" not in MODEL_CLASSES
