"""hiergen: hierarchical visual tokenizers and generators, coarse first, then the residual detail.

`import hiergen` is light: a name is imported from its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from hiergen.registry import MODEL_CLASSES, PIPELINE_CLASSES

__version__ = "0.1.0.dev0"

#: Public names and the modules that define them.
_PUBLIC = {
    "LevelSpec": "hiergen.pyramid",
    "TokenPyramid": "hiergen.pyramid",
    "create": "hiergen.registry",
    "list_presets": "hiergen.registry",
    "register": "hiergen.registry",
    "from_pretrained": "hiergen.pipelines.loading",
    **PIPELINE_CLASSES,
    **MODEL_CLASSES,
    "load_mesh": "hiergen.geometry.meshes",
    "prepare_shapes": "hiergen.data.shapes.preparation",
    "load_clips": "hiergen.data.videos.dataset",
    "compare_meshes": "hiergen.metrics.geometry",
    "compare_videos": "hiergen.metrics.video",
    "PSAConfig": "hiergen.kernels.pyramid_attention",
    "PyramidSparseAttention": "hiergen.kernels.pyramid_attention",
    "pyramid_sparse_attention": "hiergen.kernels.pyramid_attention",
    "apply_pyramid_attention": "hiergen.video",
    "register_pyramid_attention": "hiergen.video",
    "remove_pyramid_attention": "hiergen.video",
}

#: diffusers loads a pipeline's parts by the base classes that it finds in the package that the parts come from.
_FOUND_BY_DIFFUSERS = {
    "ModelMixin": "diffusers.models.modeling_utils",
    "SchedulerMixin": "diffusers.schedulers.scheduling_utils",
    "DiffusionPipeline": "diffusers.pipelines.pipeline_utils",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    # Pipelines look their parts up here; `register` adds classes to the table of models.
    module = _PUBLIC.get(name) or MODEL_CLASSES.get(name) or _FOUND_BY_DIFFUSERS.get(name)
    if module is None:
        raise AttributeError(f"module 'hiergen' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_PUBLIC))
