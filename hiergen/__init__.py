"""hiergen: hierarchical visual tokenizers and generators, coarse first, then the residual detail.

`import hiergen` is light: a name is imported from its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hiergen.registry import MODEL_CLASSES, PIPELINE_CLASSES

if TYPE_CHECKING:
    # The same names for type checkers and editors; a test holds both lists equal.
    from hiergen.data.images.processor import ImageProcessor as ImageProcessor
    from hiergen.data.shapes.preparation import prepare_shapes as prepare_shapes
    from hiergen.data.videos.dataset import load_clips as load_clips
    from hiergen.generators.flow.model import FlowTransformer as FlowTransformer
    from hiergen.generators.level_ar.model import LevelAR as LevelAR
    from hiergen.generators.masked.cascade import MaskedCascade as MaskedCascade
    from hiergen.generators.masked.ids.model import MaskedIds as MaskedIds
    from hiergen.generators.masked.model import MaskedAR as MaskedAR
    from hiergen.generators.next_scale.model import NextScaleAR as NextScaleAR
    from hiergen.generators.random_order.model import RandomOrderAR as RandomOrderAR
    from hiergen.generators.sequences.block.model import BlockTransformer as BlockTransformer
    from hiergen.generators.sequences.byte_word.model import ByteWordTransformer as ByteWordTransformer
    from hiergen.generators.sequences.hnet.model import HNet as HNet
    from hiergen.geometry.meshes import load_mesh as load_mesh
    from hiergen.kernels.pyramid_attention import PSAConfig as PSAConfig
    from hiergen.kernels.pyramid_attention import PyramidSparseAttention as PyramidSparseAttention
    from hiergen.kernels.pyramid_attention import pyramid_sparse_attention as pyramid_sparse_attention
    from hiergen.known import Known as Known
    from hiergen.levels import LevelSpec as LevelSpec
    from hiergen.metrics.geometry import compare_meshes as compare_meshes
    from hiergen.metrics.video import compare_videos as compare_videos
    from hiergen.pipelines.image import ClassToImagePipeline as ClassToImagePipeline
    from hiergen.pipelines.image import TextToImagePipeline as TextToImagePipeline
    from hiergen.pipelines.loading import from_pretrained as from_pretrained
    from hiergen.pipelines.shape import ClassToShapePipeline as ClassToShapePipeline
    from hiergen.pipelines.shape import ImageToShapePipeline as ImageToShapePipeline
    from hiergen.pipelines.video import ClassToVideoPipeline as ClassToVideoPipeline
    from hiergen.pretrained.image_encoder import ImageEncoder as ImageEncoder
    from hiergen.pyramid import TokenPyramid as TokenPyramid
    from hiergen.registry import create as create
    from hiergen.registry import list_presets as list_presets
    from hiergen.registry import register as register
    from hiergen.tokenizers.flextok.model import FlexTok as FlexTok
    from hiergen.tokenizers.hieratok.model import HieraTok as HieraTok
    from hiergen.tokenizers.kl_autoencoder.model import KLAutoencoder as KLAutoencoder
    from hiergen.tokenizers.maskgit_vqgan.model import MaskGITVQ as MaskGITVQ
    from hiergen.tokenizers.multiscale_vq.model import MultiScaleVQ as MultiScaleVQ
    from hiergen.tokenizers.pyramid.model import PyramidTokenizer as PyramidTokenizer
    from hiergen.tokenizers.pyramid_vae.model import PyramidVAE as PyramidVAE
    from hiergen.tokenizers.restok.model import ResTok as ResTok
    from hiergen.tokenizers.super_resolution.model import SuperResolution as SuperResolution
    from hiergen.tokenizers.titok.model import TiTok as TiTok
    from hiergen.tokenizers.videos.frames import FrameTokenizer as FrameTokenizer
    from hiergen.tokenizers.videos.patch_components import PatchComponents as PatchComponents
    from hiergen.tokenizers.vq_autoencoder.model import VQAutoencoder as VQAutoencoder
    from hiergen.video import apply_pyramid_attention as apply_pyramid_attention
    from hiergen.video import register_pyramid_attention as register_pyramid_attention
    from hiergen.video import remove_pyramid_attention as remove_pyramid_attention

__version__ = "0.1.0.dev0"

#: Public names and the modules that define them.
_PUBLIC = {
    "LevelSpec": "hiergen.levels",
    "TokenPyramid": "hiergen.pyramid",
    "Known": "hiergen.known",
    "create": "hiergen.registry",
    "list_presets": "hiergen.registry",
    "register": "hiergen.registry",
    "from_pretrained": "hiergen.pipelines.loading",
    **PIPELINE_CLASSES,
    **MODEL_CLASSES,
    "ImageProcessor": "hiergen.data.images.processor",
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

# Hidden from type checkers, which read the imports above: with `__getattr__` they would believe in any name.
if not TYPE_CHECKING:
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
    return sorted(["__version__", *_PUBLIC])
