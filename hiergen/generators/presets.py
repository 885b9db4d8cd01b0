"""The generator presets: one literal table."""

from __future__ import annotations

from hiergen.preset import Preset

PRESETS: dict[str, Preset] = {}
