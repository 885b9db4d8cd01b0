"""Settings of evaluations, importable without PyTorch: what several kinds share, and those of images."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal

from hiergen.checked import Checked, Count, CountOrZero, NotNegative, Range
from hiergen.data.config import DataConfig

LabelRule = Literal["balanced", "iid"]
LABEL_RULES = {
    "balanced": "label of item i is i modulo the number of classes: the same number of each, up to one",
    "iid": "label of item i is drawn uniformly from a generator seeded with (seed, i)",
}
DRAW_RULE = "item i draws from a generator seeded with (seed, i), on the CPU"
#: Rule by which values of [-1, 1] become one of 256: the nearest one, or ADM's and ResTok's truncation.
Rounding = Literal["nearest", "truncate"]


@dataclasses.dataclass(frozen=True)
class ExtractorConfig(Checked):
    """Which feature extractor is used.

    Attributes:
        name: Name of the extractor: "inception" (FID), "inception-768" (the same network up to Mixed_6e: FID-768), "dinov2-b", "dinov2-l", "digits" (a small
            classifier trained on the embedded digits), "own" (one trained on the classes of the data, once), or a name given
            to `register_extractor`.
        weights: File of the weights, .pth or .safetensors, for those that are read from a file.
        size: Side in pixels at which "own" sees pictures; larger takes longer.
        budget: Number of pictures that "own" sees in training, repeats counted: 100,000 of 32 x 32 take about half a minute on a CPU.
        seed: Seed of the training of "own".
    """

    name: str = "inception"
    weights: str | None = None
    size: Annotated[int, Range(8)] = 32
    budget: Count = 100_000
    seed: CountOrZero = 0


@dataclasses.dataclass(frozen=True)
class PassConfig(Checked):
    """How the work is cut; none of it changes the results but in the last bits, and with `exact` only `exact` does.

    Matrix products of other sizes round differently: another batch size moves a byte of a sample now and then by one of 255.

    Attributes:
        batch_size: Number of items that the models take at once.
        part_size: Number of items per stored part: what is lost, at most, when a run is stopped.
        workers: Number of threads that read and decode images while the models work, one batch each; 0 reads between batches.
        device: Device of the models, e.g. "cuda:1"; "auto" is CUDA where there is one.
        exact: Number of items that the models always take at once, item k with its neighbors of the same multiple, whatever `batch_size`
            is: then files are the same bytes for any batch size, part size and number of processes, at the speed of such a batch on
            one thread of the CPU per process; 1 takes each item by itself, 0 takes `batch_size`.
    """

    batch_size: int = 64
    part_size: int = 512
    workers: int = 4
    device: str = "auto"
    exact: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("batch_size", 1), ("part_size", 1), ("workers", 0), ("exact", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")

    @property
    def at_once(self) -> int:
        """How many items the models take at once."""
        return self.exact or self.batch_size

    @property
    def rule(self) -> str:
        """What a report says of it."""
        if self.exact:
            return (
                f"models take {self.exact} at once, always, on one thread of the CPU: no other batch, part or number of processes "
                "changes a bit"
            )
        return f"models take {self.batch_size} at once; another batch size moves the last bits"

    def whole(self, size: int) -> int:
        """Return a size of batches or parts, rounded up so that it cuts no group of `exact` items."""
        return -(-size // self.exact) * self.exact if self.exact else size


@dataclasses.dataclass(frozen=True)
class DistanceConfig(Checked):
    """How distances are computed from features.

    Attributes:
        kid_subset_size: Number of images in each subset of the kernel distance; fewer where a set is smaller.
        neighborhood: Number of nearest neighbors that span a ball for precision and recall.
        splits: Number of splits of the Inception score.
        resamples: Number of bootstrap draws behind each confidence interval; 0 leaves all intervals out.
        seed: Seed of subsets, splits and draws.
    """

    kid_subset_size: int = 1000
    neighborhood: int = 3
    splits: int = 10
    resamples: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("kid_subset_size", 2), ("neighborhood", 1), ("splits", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")
        check_resamples(self.resamples)
        check_seed(self.seed)


@dataclasses.dataclass(frozen=True)
class SamplingConfig(Checked):
    """Sampling settings of all generators. What is not given keeps the generator's default; what it does not have is refused.

    Attributes:
        guidance_scale: Strength of guidance; 1 is none.
        guidance_schedule: How guidance changes over a generation, e.g. "constant", "linear" or "cosine".
        guidance_interval: Index of the last token that a generator token by token guides; -1 guides all.
        guidance_start: Time of a flow, 0 (noise) to 1, from which guidance acts.
        guidance_end: Time of a flow up to which guidance acts.
        min_guidance_scale: Strength of guidance outside of the window of schedule "rectangular" or "step".
        high_guidance_scale: Strength of guidance in the fine stage of a cascade.
        window_start: Start of that window, as a share of the generation.
        window_end: End of that window.
        peak: Share of the generation at which schedules "linear_constant" and "triangular" are at their full strength.
        guidance_power: Exponent of schedule "power_cosine"; larger ones guide later.
        guidance_against: What guidance moves away from: "null", no class, or "parent", the class one level above.
        cfg_channels: Number of leading channels that a flow guides.
        temperature: Temperature of the draws; lower ones are likelier.
        top_k: Number of likeliest ids to draw from; 0 for all.
        top_p: Probability that the likeliest ids to draw from make up; 1 for all.
        greedy: Take the likeliest id instead of drawing one.
        num_steps: Number of steps of a masked or flow generator.
        solver: How a flow is followed: "euler", "heun" or "sde".
        timestep_shift: Shift of a flow's time grid; below 1 it is denser near the noise, 1 leaves it even.
        last_step: Length of the last step of solver "sde", as a share of the time.
        resamplings: How often a flow makes each step, with fresh noise between.
        head_sampler: How a diffusion head makes a token: "ddpm" or "ddim".
        head_steps: Number of diffusion steps that make a token.
        head_spacing: Which steps of the head's chain these are: "linspace" or "leading".
        eta: Noise of head sampler "ddim", 0 to 1.
        low_res_noise: Share of noise that a cascade mixes into the coarse tokens for its fine stage.
        anneal_softmax: Let the temperature of a masked generator of ids fall over the steps.
        official_draws: Draw ids as TiTok's and RAR's programs do, with the same numbers from the same seed.
        smooth: Let VAR mix codes rather than draw one, in its smooth mode.
        max_new_bytes: Number of bytes that a model of text makes at most.
        stop: Strings that end a text, which is cut before the first of them.
        exit_levels: Number of the exit of the plan at which each level of a `LevelAR` is read, 1 for the first.
        exit_confidence: Probability of the likeliest ids at which the tokens of a `LevelAR` leave by an earlier exit.
        exit_fill: What stands at steps that such tokens skip: "run" or "copy".
        level_chains: Number of chains that each level of a `LevelAR` runs with.
    """

    guidance_scale: float | None = None
    guidance_schedule: str | None = None
    guidance_interval: int | None = None
    guidance_start: float | None = None
    guidance_end: float | None = None
    min_guidance_scale: float | None = None
    high_guidance_scale: float | None = None
    window_start: float | None = None
    window_end: float | None = None
    peak: float | None = None
    guidance_power: NotNegative | None = None
    guidance_against: str | None = None
    cfg_channels: int | None = None
    temperature: NotNegative | None = None
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool | None = None
    num_steps: int | None = None
    solver: str | None = None
    timestep_shift: float | None = None
    last_step: float | None = None
    resamplings: Count | None = None
    head_sampler: str | None = None
    head_steps: int | None = None
    head_spacing: str | None = None
    eta: float | None = None
    low_res_noise: float | None = None
    anneal_softmax: bool | None = None
    official_draws: bool | None = None
    smooth: bool | None = None
    max_new_bytes: Count | None = None
    stop: tuple[str, ...] | None = None
    exit_levels: tuple[int, ...] | None = None
    exit_confidence: float | None = None
    exit_fill: str | None = None
    level_chains: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("guidance_scale", "temperature", "top_p"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}, expected a number of at least 0")

    def given(self) -> dict[str, Any]:
        """Return the fields that are given."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.given().items()) or "the generator's defaults"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Checked):
    """What every evaluation is told.

    Attributes:
        out: Folder of the report. A stopped run that is started again continues; a finished one is drawn anew.
        passes: Batch size, size of the stored parts, and device.
    """

    out: str = "evaluation"
    passes: PassConfig = dataclasses.field(default_factory=PassConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorSettings(EvaluationSettings):
    """How a pipeline generates what is evaluated.

    Attributes:
        pipeline: Folder or Hub id of a pipeline that generates from class labels.
        labels: Rule that gives each item its class label, "balanced" or "iid"; the report spells it out.
        seed: Seed of all random draws; an item draws from the seed and its own index.
        sampling: Settings of the generator.
    """

    pipeline: str = ""
    labels: LabelRule = "balanced"
    seed: int = 0
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)

    @property
    def draw_protocol(self) -> dict[str, str]:
        """What a report says about the draws."""
        return {"labels": LABEL_RULES[self.labels], "draws": DRAW_RULE, "sampling": str(self.sampling)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSettings(EvaluationSettings):
    """How sets of images are compared.

    Attributes:
        data: Real images.
        reference: Statistics file (.npz), such as ADM's, that stands in for the real images in distances.
        extractor: Feature extractor on which distances are measured.
        rounding: Rule that rounds pixels of both sets to bytes: "nearest" or "truncate".
        distances: Subset sizes, bootstrap draws and their seed.
        cache: Folder of what was computed from real images: statistics of references, classifiers of extractor "own".
    """

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    reference: str = ""
    extractor: ExtractorConfig = dataclasses.field(default_factory=ExtractorConfig)
    rounding: Rounding = "nearest"
    distances: DistanceConfig = dataclasses.field(default_factory=DistanceConfig)
    cache: str = "~/.cache/hiergen/references"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RfidSettings(ImageSettings):
    """Evaluate a tokenizer's reconstructions.

    Attributes:
        tokenizer: Folder or Hub id of the tokenizer, or of a pipeline that has one.
        data: Images to reconstruct; `data.size` must be the tokenizer's.
        num_images: Number of images, the first ones; 0 takes all.
        prefixes: Also measure every prefix of levels (or of the decoder's scales): the rate-distortion page.
        lpips: Backbone of LPIPS ("alex", "vgg", "squeeze"), or "none".
        lpips_folder: Folder in which its weights are looked for first.
    """

    tokenizer: str = "quickstart/pipeline/tokenizer"
    out: str = "evaluation/rfid"
    data: DataConfig = dataclasses.field(default_factory=lambda: DataConfig(split="test"))
    num_images: int = 0
    prefixes: bool = False
    lpips: str = "alex"
    lpips_folder: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class GfidSettings(GeneratorSettings, ImageSettings):
    """Evaluate generated images.

    Attributes:
        pipeline: Folder or Hub id of a pipeline that generates images from class labels.
        samples: Images that are there already, in place of the pipeline: an .npz with `arr_0` (uint8, n h w 3), or a folder of pictures.
        num_images: Number of images to generate; of samples, 0 takes all.
        data: Reference images.
        keep: Form in which the images themselves are kept: "npz" writes samples.npz in ADM's layout, "png" a folder of pictures.
    """

    pipeline: str = "quickstart/pipeline"
    samples: str = ""
    out: str = "evaluation/gfid"
    num_images: int = 0
    keep: Literal["none", "npz", "png"] = "none"


def check_one_given(settings: EvaluationSettings, *names: str) -> None:
    """Raise a ValueError unless exactly one of some settings is given."""
    given = [name for name in names if getattr(settings, name)]
    if len(given) != 1:
        options = [f"--{name}" for name in names]
        listed = f"{', '.join(options[:-1])} and {options[-1]}"
        raise ValueError(f"got {' and '.join(given) or 'none'} of {listed}, expected one")


def check_resamples(resamples: int) -> None:
    """Raise a ValueError for a number of bootstrap draws that has no deviation; 0 is none at all."""
    if resamples < 0 or resamples == 1:
        raise ValueError(f"resamples is {resamples}, expected 0 (no intervals) or at least 2")


def check_seed(seed: int) -> None:
    """Raise a ValueError for a seed that generators do not take."""
    if seed < 0:
        raise ValueError(f"seed is {seed}, expected at least 0")
