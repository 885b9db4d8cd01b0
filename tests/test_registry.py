from __future__ import annotations

import pytest
import torch

from hiergen.registry import MODEL_CLASSES, create, get_preset, list_presets, model_class, pipeline_class, presets


def test_every_preset_builds_on_the_meta_device_and_names_its_source() -> None:
    """Constructors must accept every shipped configuration; no weights are allocated."""
    for name, preset in presets().items():
        assert preset.model in MODEL_CLASSES
        assert len(preset.source) > 10
        with torch.device("meta"):
            model = create(name)
        assert sum(parameter.numel() for parameter in model.parameters()) > 0
        assert sum(spec.num_tokens for spec in model.specs) > 0


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
