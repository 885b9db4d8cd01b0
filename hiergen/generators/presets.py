"""The generator presets: one literal table, merged from the families' tables."""

from __future__ import annotations

from hiergen.generators import presets_flow_transformer, presets_level_ar, presets_masked
from hiergen.preset import Preset

PRESETS: dict[str, Preset] = {**presets_level_ar.PRESETS, **presets_flow_transformer.PRESETS, **presets_masked.PRESETS}
