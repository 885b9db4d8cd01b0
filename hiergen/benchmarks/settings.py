"""Settings of the benchmarks of `hiergen bench`, importable without PyTorch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, get_args

from hiergen.benchmarks.measuring.settings import BenchmarkSettings, RepeatedSettings, TimingSettings
from hiergen.checked import Checked, Count
from hiergen.evaluation.settings import ExtractorConfig
from hiergen.kernels.names import DenseBackendName, ImportanceName
from hiergen.pretrained.network_names import LPIPSNetwork, TeacherName


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResTokSettings(TimingSettings):
    """Time ResTok.

    Attributes:
        preset: A ResTok preset; its weights are random.
        dtype: Number format of autocast; float32 is none.
    """

    preset: str = "restok-ss-128"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResTokSettings(RepeatedSettings):
    """Time a training step.

    Attributes:
        preset: A ResTok preset, or one of HAR, which has none of the terms.
        batch: Images per step.
        perceptual: Network of LPIPS; "none" for no perceptual term.
        discriminator: Kind of discriminator; "none" for a single player.
        teacher: Teacher of the alignment; "none" for no alignment.
        dtype: Number format of autocast; float32 is none.
    """

    preset: str = "restok-ss-128"
    batch: int = 4
    perceptual: LPIPSNetwork | Literal["none"] = "none"
    discriminator: Literal["dino", "patch", "blur", "none"] = "none"
    teacher: TeacherName | Literal["none"] = "none"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}, expected at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HieraTokSettings(TimingSettings):
    """Time HieraTok's decoder, forward alone and with the backward pass.

    Attributes:
        preset: A HieraTok preset; its weights are random.
        depth: Number of decoder blocks; None is the preset's.
        dtype: Number format of weights and latents.
    """

    preset: str = "hieratok-b"
    depth: int | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class HARSettings(TimingSettings):
    """Time the sampling of HAR.

    Attributes:
        preset: A generator preset with `layout="level"`; its weights are random.
        depth: Number of transformer blocks; None is the preset's.
        guidance_scale: Guidance scale of the published step schedule; 1 samples without guidance.
        dtype: Number format of the weights.
    """

    preset: str = "har-b"
    depth: int | None = None
    guidance_scale: float = 3.75
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MARSettings(TimingSettings):
    """Time the sampling of MAR.

    Attributes:
        preset: A generator preset of class-conditional MAR; its weights are random.
        num_steps: Number of unmasking steps.
        head_steps: Number of diffusion steps per token.
        guidance_scale: Guidance scale; 1 samples without guidance.
        compile: Time the compiled sampler too; what compiling takes is not counted.
        compile_mode: Mode of `torch.compile`; "reduce-overhead" records CUDA graphs.
    """

    preset: str = "mar-b"
    num_steps: int = 64
    head_steps: int = 100
    guidance_scale: float = 2.9
    compile: bool = False
    compile_mode: Literal["default", "reduce-overhead"] = "default"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VARSettings(TimingSettings):
    """Time the sampling of VAR, without the tokenizer's decoder.

    Attributes:
        preset: A preset of `NextScaleAR`; its weights are random.
        depth: Number of transformer blocks; None is the preset's.
        guidance_scale: Guidance scale at the last level.
        dtype: Number format of the weights.
    """

    preset: str = "var-d16"
    depth: int | None = None
    guidance_scale: float = 2.5
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RARSettings(TimingSettings):
    """Time the sampling of RAR.

    Attributes:
        preset: A preset of `RandomOrderAR`; its weights are random.
        depth: Number of transformer blocks; None is the preset's.
        guidance_scale: Guidance scale at the end of RAR-B's published schedule.
        uncached: Time the sampler without a cache too, which computes the whole sequence again for every token.
        dtype: Number format of the weights.
    """

    preset: str = "rar-b"
    depth: Count | None = None
    guidance_scale: float = 16.0
    uncached: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskGITSettings(TimingSettings):
    """Time the sampling of TiTok's MaskGIT, with the published noise and guidance schedule of TiTok-L-32.

    Attributes:
        preset: A preset of `MaskedIds`; its weights are random.
        depth: Number of transformer blocks; None is the preset's.
        num_steps: Number of passes.
        guidance_scale: Guidance scale that the last pass would have; 0 samples without guidance.
        dtype: Number format of the weights.
    """

    preset: str = "maskgit-l-32"
    depth: Count | None = None
    num_steps: Count = 8
    guidance_scale: float = 4.5
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings(BenchmarkSettings):
    """Time surface extraction.

    Attributes:
        preset: A `PyramidVAE` preset; its weights are random. Its finest level is decoded.
        shapes: Known surfaces: "sphere" (radius 0.8, nearly the largest surface that fits) and "table" (a thin top, four legs).
        depths: Depths of the grids, which have `2 ** depth + 1` nodes per axis: 7 is 129, 8 is 257, 9 is 513.
        coarse_depth: Depth of the coarse grid, as in `ExtractionSettings`.
        dense_share: Share of the dense grid that is really evaluated, its time scaled up to all; 1 also compares the meshes.
        chunk_size: Points per call of the decoder.
    """

    preset: str = "pyramid-vae-tiny"
    shapes: tuple[Literal["sphere", "table"], ...] = ("sphere", "table")
    depths: tuple[int, ...] = (7,)
    coarse_depth: int = 5
    dense_share: float = 1.0
    chunk_size: int = 32_768

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.dense_share <= 1:
            raise ValueError(f"dense_share is {self.dense_share}, expected more than 0 and at most 1")
        if not self.shapes or not self.depths:
            raise ValueError("shapes and depths hold nothing to measure")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionSettings(RepeatedSettings):
    """Time the backends of dense and level-masked attention.

    Attributes:
        layouts: Which keys are seen: all ("dense"), or block-causal by the levels of HAR's, VAR's or HieraTok's published models.
        backends: Backends to time; "sdpa", which all are held against, is always timed.
        tokens: Number of tokens of the dense layout.
        batch: Sequences per call.
        heads: Number of attention heads.
        dim: Channels per head.
        dtype: Number format of queries, keys and values.
    """

    layouts: tuple[Literal["dense", "har", "var", "hieratok"], ...] = ("dense", "har", "var", "hieratok")
    backends: tuple[DenseBackendName, ...] = get_args(DenseBackendName)
    tokens: Count = 1024
    batch: Count = 1
    heads: Count = 12
    dim: Count = 64
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.layouts or not self.backends:
            raise ValueError("layouts and backends hold nothing to measure")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AllSettings(BenchmarkSettings):
    """Run every benchmark at sizes for the machine at hand.

    Attributes:
        quick: Take small models and single runs: for a look, not for publishing.
        only: Names of the benchmarks to run; none for all.
        output: JSON file that is written anew after every benchmark.
    """

    quick: bool = False
    only: tuple[str, ...] = ()
    output: Path = Path("speed.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingSettings(RepeatedSettings):
    """Measure how time and memory grow with the work.

    Attributes:
        quick: Take small sizes and single runs: for a look, not for publishing.
        only: Names of the kinds of work; none for all.
        output: JSON file that is written anew after every kind of work.
    """

    quick: bool = False
    only: tuple[str, ...] = ()
    output: Path = Path("scaling.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PSASettings(Checked):
    """What to measure.

    Attributes:
        tokens: Most tokens of the sequence; the largest grid of a video's proportions within this number is used.
        heads: Number of attention heads.
        drawn_heads: Number of heads that are drawn, repeated up to `heads`; None draws all. Drawing is done on the CPU.
        dim: Channels per head.
        density: Share of the dense product to compute, in (0, 1].
        dtype: Type of queries, keys and values.
        device: Where to run; "auto" is CUDA if there is one.
        query_block: Queries per block.
        key_block: Keys per block.
        importance: Estimator that the plan is made from.
        repeats: Timed calls; the median counts.
        seed: Seed of the inputs.
        output: Folder for `psa.json`, `psa.png` and `plan.png`, the plan of the first head; None writes nothing.
    """

    tokens: int = 75_600
    heads: int = 40
    drawn_heads: Count | None = None
    dim: int = 128
    density: float = 0.12
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    device: str = "auto"
    query_block: int = 128
    key_block: int = 128
    importance: ImportanceName = "pyramid"
    repeats: int = 10
    seed: int = 0
    output: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.density <= 1:
            raise ValueError(f"density is {self.density}, expected a share in (0, 1]")
        if self.repeats < 1:
            raise ValueError(f"repeats is {self.repeats}, expected at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PSAQualitySettings(Checked):
    """What to compare.

    Attributes:
        inputs: A safetensors file with q, k, v of (1, heads, tokens, channels), tokens already in the order that blocks are cut
            from; None makes synthetic heads.
        tokens: Approximate length of the synthetic sequence, in tokens.
        heads: Number of synthetic heads; local, content and mixed ones take turns.
        dim: Channels per synthetic head.
        densities: Shares of the dense product to compute.
        query_block: Queries per block.
        key_block: Keys per block.
        sharpness: Standard deviation of the synthetic scores, in nats.
        seed: Seed of the inputs and of the estimators' samples.
    """

    inputs: Path | None = None
    tokens: int = 2048
    heads: int = 3
    dim: int = 64
    densities: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    query_block: int = 32
    key_block: int = 32
    sharpness: float = 1.5
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateSettings(RepeatedSettings):
    """Time a whole evaluation of PNG files beside its parts alone.

    Attributes:
        kind: What is evaluated: "rfid" rebuilds the pictures with a tokenizer, "samples" takes them as generated ones, with statistics of
            the reference that are there already.
        preset: Preset of the image tokenizer, with random weights; with "samples" it only gives the size of the pictures.
        num_images: Number of pictures, which are written at the start.
        extractor: Feature extractor of the distances; "digits" needs no file.
        resamples: Number of bootstrap draws of the intervals; 0 leaves them out.
        workers: Number of threads that read ahead.
        batch_size: Images per pass of the models.
    """

    kind: Literal["rfid", "samples"] = "rfid"
    preset: str = "restok-tiny"
    num_images: int = 256
    extractor: ExtractorConfig = dataclasses.field(default_factory=lambda: ExtractorConfig("digits"))
    resamples: int = 100
    workers: int = 4
    batch_size: int = 64
    repeats: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_images < 10:
            raise ValueError(f"num_images is {self.num_images}, expected at least 10")


#: Settings of the benchmarks by their names; one that is a single file has them beside its `run`, as `Settings`.
SETTINGS = {
    "all": AllSettings,
    "attention": AttentionSettings,
    "restok": ResTokSettings,
    "train-restok": TrainResTokSettings,
    "hieratok": HieraTokSettings,
    "har": HARSettings,
    "mar": MARSettings,
    "var": VARSettings,
    "rar": RARSettings,
    "maskgit": MaskGITSettings,
    "mesh": MeshSettings,
    "psa": PSASettings,
    "psa-quality": PSAQualitySettings,
    "evaluate": EvaluateSettings,
    "scaling": ScalingSettings,
}

_GENERATORS = ("har", "var", "mar", "rar", "maskgit")


def module_of(name: str) -> str:
    """Return the module of a benchmark, whose `run` measures."""
    folder = "hiergen.benchmarks.generators" if name in _GENERATORS else "hiergen.benchmarks"
    return f"{folder}.{name.replace('-', '_')}"
