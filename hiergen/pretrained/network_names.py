"""Names of frozen networks, importable without PyTorch."""

from __future__ import annotations

from typing import Literal

#: Backbones of LPIPS.
LPIPSNetwork = Literal["vgg", "alex", "squeeze"]
#: Teachers that tokens are aligned with.
TeacherName = Literal["dinov3", "dinov2", "dinov2_b", "clip", "siglip2", "mae"]
