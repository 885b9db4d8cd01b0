"""Seeds as a pure function of what they are for, so that a resumed run draws what the uninterrupted one would have drawn."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part and on their order, the same on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def make_rng(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a `torch.Generator` seeded with `derive_seed(*parts)`."""
    rng = torch.Generator(device=device)
    rng.manual_seed(derive_seed(*parts))
    return rng
