"""The tokenizer presets: one literal table."""

from __future__ import annotations

from hiergen.preset import Preset
from hiergen.tokenizers.presets_hieratok import PRESETS as HIERATOK_PRESETS
from hiergen.tokenizers.presets_kl_autoencoder import PRESETS as KL_PRESETS
from hiergen.tokenizers.presets_restok import PRESETS as RESTOK_PRESETS
from hiergen.tokenizers.presets_shapes import PRESETS as SHAPE_PRESETS
from hiergen.tokenizers.presets_video import PRESETS as VIDEO_PRESETS

PRESETS: dict[str, Preset] = {
    **RESTOK_PRESETS,
    **SHAPE_PRESETS,
    **HIERATOK_PRESETS,
    **KL_PRESETS,
    **VIDEO_PRESETS,
}
