"""Reading meshes from files that nobody vouches for."""

from __future__ import annotations

import importlib.util


def require_shape_libraries() -> None:
    """Check that the libraries under all shape code are installed.

    Raises:
        ImportError: Naming what is missing and the extra that brings it.
    """
    missing = [name for name in ("trimesh", "scipy", "skimage") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'shapes need {", ".join(missing)}: pip install "hiergen[shapes]"')
