"""What the quickstarts run with. Light to import: a command line is read before PyTorch and diffusers are."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from hiergen.checked import Checked, Range
from hiergen.data.shapes.procedural import PROCEDURAL_CLASSES
from hiergen.registry import Kind, get_preset, presets

NUM_DIGITS = 10
NUM_SHAPE_CLASSES = len(PROCEDURAL_CLASSES)


@dataclasses.dataclass(frozen=True)
class Family:
    """How the quickstart trains, draws and samples the models of one class.

    Attributes:
        kind: "tokenizer" or "generator".
        tokens: What the tokenizer gives or the generator makes: "discrete" or "continuous" tokens.
        lr: Peak learning rate.
        weight_decay: Weight decay of the optimizer.
        samples_factor: Training samples over `QuickstartSettings.samples_seen`.
        ema_decay: Decay of the averaged weights.
        curves: Title and log entries of each panel of training curves.
        sampling: Sampling settings of the generator.
    """

    kind: Kind
    tokens: Literal["discrete", "continuous"]
    lr: float
    curves: dict[str, tuple[str, ...]]
    weight_decay: float = 1e-4
    samples_factor: float = 1.0
    ema_decay: float = 0.99
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)


#: By model class.
FAMILIES: dict[str, Family] = {
    "ResTok": Family(kind="tokenizer", tokens="discrete", lr=2e-3, curves={"pixel error": ("pixel",)}),
    "HieraTok": Family(
        kind="tokenizer",
        tokens="continuous",
        lr=1e-3,
        curves={"pixel error": ("pixel",)},
    ),
    "LevelAR": Family(
        kind="generator",
        tokens="discrete",
        lr=1e-3,
        weight_decay=0.05,
        curves={"cross-entropy (nats)": ("loss",), "accuracy": ("accuracy",)},
        sampling={"guidance_scale": 1.5, "guidance_schedule": "constant", "temperature": 1.0, "top_p": 1.0},
    ),
    "FlowTransformer": Family(
        kind="generator",
        tokens="continuous",
        lr=1e-3,
        samples_factor=2.0,
        ema_decay=0.995,
        curves={"velocity error": ("mse",), "direction error": ("cosine",)},
        sampling={"num_steps": 20, "solver": "heun", "timestep_shift": 1.0, "guidance_scale": 1.5},
    ),
    "MaskedAR": Family(
        kind="generator",
        tokens="continuous",
        lr=1e-3,
        samples_factor=1.5,
        ema_decay=0.995,
        curves={"noise error": ("mse",), "variational bound (bits)": ("vb",)},
        sampling={
            "num_steps": 16,
            "guidance_scale": 2.0,
            "guidance_schedule": "constant",
            "temperature": 1.0,
            "head_steps": 25,
            "head_spacing": "leading",
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class EmbeddedPictures:
    """Pictures that come with the package, and what the quickstart makes of them unless it is told otherwise.

    Attributes:
        what: What they are, with their source.
        name: Name of several of them.
        thing: What a class is.
        num_classes: Number of classes.
        judge: What the judge looks at: "gray" or "color" pixels.
        settings: Fields of `QuickstartSettings` that differ from their defaults.
    """

    what: str
    name: str
    thing: str
    num_classes: int
    judge: Literal["gray", "color"]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


#: By the name of the source (`DataConfig.source`).
PICTURES: dict[str, EmbeddedPictures] = {
    "digits": EmbeddedPictures(
        what="scikit-learn's handwritten digits",
        name="handwritten digits",
        thing="digit",
        num_classes=NUM_DIGITS,
        judge="gray",
    ),
    "emoji": EmbeddedPictures(
        what="emoji drawn by Google (noto) and Microsoft (fluent-flat)",
        name="emoji",
        thing="group",
        num_classes=8,
        judge="color",
        settings={
            "data": "emoji",
            "num_generated": 400,
            "samples_seen": 36_000,
            "tokenizer": "hieratok-tiny-color",
            "generator": "flow-tiny",
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class QuickstartSettings(Checked):
    """Train a tokenizer and a generator on embedded handwritten digits or emoji, then sample, score and draw.

    `hiergen quickstart shapes` and `hiergen quickstart video` do the same on procedural shapes and on clips of moving digits.

    Attributes:
        data: "digits", or "emoji", which are in color and whose classes are their groups.
        out: Folder for models, pictures and the report.
        samples_seen: Number of training samples of each of the two models; generators of continuous tokens see more.
        seed: Seed of all random draws.
        num_generated: Number of images to generate for the scores, the same for each class.
        tokenizer: Preset of the tokenizer, of ResTok or HieraTok.
        generator: Preset of the generator: of LevelAR for ResTok's discrete tokens, of FlowTransformer or MaskedAR for HieraTok's
            continuous ones.
    """

    data: Literal["digits", "emoji"] = "digits"
    out: str = "quickstart"
    samples_seen: int = 24_000
    seed: int = 0
    num_generated: int = 500
    tokenizer: str = "restok-tiny"
    generator: str = "har-tiny"

    @classmethod
    def usual(cls, data: str) -> QuickstartSettings:
        """Return the settings that some data are run with unless others are given; those of unknown data are refused when they are read."""
        return cls(**PICTURES[data].settings) if data in PICTURES else cls()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples_seen < 64:
            raise ValueError(f"samples_seen is {self.samples_seen}, expected at least 64, one batch")
        classes = PICTURES[self.data].num_classes
        if self.num_generated < 80 or self.num_generated % classes:
            raise ValueError(f"num_generated is {self.num_generated}, expected a multiple of {classes}, at least 80")
        given, made = family("tokenizer", self.tokenizer).tokens, family("generator", self.generator).tokens
        if given != made:
            raise ValueError(
                f"tokenizer {self.tokenizer!r} gives {given} tokens, generator {self.generator!r} makes {made} ones; "
                f"expected both alike, e.g. {_example(given)}"
            )


@dataclasses.dataclass(frozen=True)
class ShapesQuickstartSettings(Checked):
    """Train a tokenizer and two generators on procedural shapes, then generate meshes by class and by image, score and draw.

    Attributes:
        out: Folder for shapes, models, meshes, pictures and the report.
        num_shapes: Number of training shapes, the same for each class.
        num_test: Number of held-out shapes, which are reconstructed and compared with generated ones.
        tokenizer_samples: Number of training samples of the tokenizer.
        generator_samples: Number of training samples of the generator by class.
        image_samples: Number of training samples of the generator by image.
        num_views: Number of rendered views of each shape.
        view_size: Height and width of a view in pixels.
        num_variants: Number of encodings of each training shape, from different surface points.
        num_generated: Number of shapes to generate, the same for each class.
        depth: Depth of the grid that meshes come from, which has `2 ** depth + 1` nodes per axis.
        seed: Seed of all random draws.
        num_workers: Number of processes that prepare shapes; None takes one per core.
        tokenizer: Preset of the tokenizer.
        generator: Preset of the generator.
    """

    out: str = "quickstart-shapes"
    num_shapes: int = 512
    num_test: int = 32
    tokenizer_samples: int = 24_000
    generator_samples: int = 9_000
    image_samples: int = 6_000
    num_views: int = 2
    view_size: int = 64
    num_variants: int = 2
    num_generated: int = 32
    depth: int = 6
    seed: int = 0
    num_workers: int | None = None
    tokenizer: str = "pyramid-vae-tiny"
    generator: str = "mar3d-tiny"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_shapes", "num_test", "num_generated"):
            _check_balanced(name, getattr(self, name), NUM_SHAPE_CLASSES, "classes")
        for name in ("tokenizer_samples", "generator_samples", "image_samples", "num_variants", "num_views"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        _check_presets({self.tokenizer: "PyramidVAE", self.generator: "MaskedCascade"})


@dataclasses.dataclass(frozen=True)
class MovingPictures:
    """Embedded things that move, and what the video quickstart makes of them unless it is told otherwise.

    Attributes:
        what: What they are.
        thing: What a class is.
        judge: What the judge looks at.
        sampling: What the samples are drawn with.
        settings: Fields of `VideoQuickstartSettings` that differ from their defaults.
    """

    what: str
    thing: str
    judge: str
    sampling: dict[str, Any]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


#: By `VideoQuickstartSettings.data`.
MOVING: dict[str, MovingPictures] = {
    "digits": MovingPictures(
        what="moving handwritten digits",
        thing="digit",
        judge="8 x 8 pixels around the center of brightness of a frame",
        sampling={"num_steps": 25, "solver": "euler", "timestep_shift": 0.4, "guidance_scale": 3.0},
    ),
    "emoji": MovingPictures(
        what="moving emoji drawn by Google (noto) and Microsoft (fluent-flat)",
        thing="kind of emoji",
        judge="8 x 8 pixels in color around what is not white in a frame",
        sampling={"num_steps": 25, "solver": "euler", "timestep_shift": 0.3, "guidance_scale": 2.0},
        settings={
            "data": "emoji",
            "samples_seen": 34_000,
            "num_generated": 100,
            "densities": (0.5,),
            "tokenizer": "patches-emoji-48",
            "generator": "flow-video-emoji-48",
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class VideoQuickstartSettings(Checked):
    """Train a generator on clips of moving digits or emoji, then sample with dense and with sparse attention, score and draw.

    Attributes:
        data: "digits", or "emoji", which are larger, in color and of 16 frames that end where they began.
        out: Folder for models, clips, pictures and the report.
        num_clips: Number of training clips, the same for each class.
        num_test: Number of held-out clips, which are reconstructed and measured beside generated ones.
        samples_seen: Number of training samples of the generator.
        num_generated: Number of clips to generate with each kind of attention, the same for each class.
        densities: Densities of sparse attention: the share of the dense products that it computes. The first is shown in the pictures.
        seed: Seed of all random draws.
        tokenizer: Preset of the tokenizer, a `PatchComponents`.
        generator: Preset of the generator, a `FlowTransformer`.
    """

    data: Literal["digits", "emoji"] = "digits"
    out: str = "quickstart-video"
    num_clips: int = 2000
    num_test: int = 100
    samples_seen: int = 36_000
    num_generated: int = 30
    densities: tuple[float, ...] = (0.5, 0.25)
    seed: int = 0
    tokenizer: str = "patches-tiny"
    generator: str = "flow-video-tiny"

    @classmethod
    def usual(cls, data: str) -> VideoQuickstartSettings:
        """Return the settings that some data are run with unless others are given; those of unknown data are refused when they are read."""
        return cls(**MOVING[data].settings) if data in MOVING else cls()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_clips", "num_test", "num_generated"):
            _check_balanced(name, getattr(self, name), NUM_DIGITS, "classes")
        if self.samples_seen < 1:
            raise ValueError(f"samples_seen is {self.samples_seen}, expected at least 1")
        if not self.densities or not all(0 < density < 1 for density in self.densities):
            raise ValueError(f"densities are {self.densities}, expected at least one, each between 0 and 1")
        _check_presets({self.tokenizer: "PatchComponents", self.generator: "FlowTransformer"})


@dataclasses.dataclass(frozen=True)
class TextQuickstartSettings(Checked):
    """Train models of bytes on Python's help topics at equal compute: flat ones, one of blocks, one of learned chunks; score and draw.

    Attributes:
        out: Folder for models, pictures and the report.
        samples_seen: Number of training rows of the first model; the others see as many as make the same number of operations.
        length: Bytes of a row, a multiple of 4.
        models: Presets of models of bytes; the first sets the compute.
        seed: Seed of all random draws.
    """

    out: str = "quickstart-text"
    samples_seen: Annotated[int, Range(8)] = 1_600
    length: Annotated[int, Range(16)] = 256
    models: tuple[str, ...] = ("flat-transformer-tiny", "flat-mamba-tiny", "block-tiny", "hnet-tiny")
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length % 4:
            raise ValueError(f"length is {self.length}, expected a multiple of 4")
        if not self.models:
            raise ValueError("models is empty, expected at least one preset")
        for name in self.models:
            chosen = get_preset(name)
            if chosen.model not in _TEXT_MODELS or chosen.config.get("level_specs") or "vocab_size" in chosen.config:
                raise ValueError(
                    f"preset {name!r} is a {chosen.model}, expected a model of text as bytes such as hnet-tiny"
                )


_TEXT_MODELS = ("HNet", "BlockTransformer", "ByteWordTransformer")


def family(kind: Kind, preset: str) -> Family:
    """Return the family of a preset.

    Raises:
        ValueError: If the preset is unknown, or the quickstart has no settings for its class as this kind of model.
    """
    chosen = get_preset(preset)
    found = FAMILIES.get(chosen.model)
    if found is None or found.kind != kind:
        known = [name for name, entry in FAMILIES.items() if entry.kind == kind]
        raise ValueError(f"{kind} is {preset!r}, a {chosen.model}; expected a preset of {' or '.join(known)}")
    return found


def sampling(settings: QuickstartSettings) -> dict[str, Any]:
    """Return what the samples are drawn with: fields of the generator's settings."""
    return family("generator", settings.generator).sampling


def _example(tokens: str) -> str:
    names = {
        kind: next(
            name
            for name, preset in presets(kind).items()
            if name.endswith("-tiny") and preset.model in FAMILIES and FAMILIES[preset.model].tokens == tokens
        )
        for kind in ("tokenizer", "generator")
    }
    return f"--tokenizer {names['tokenizer']} --generator {names['generator']}"


def _check_balanced(name: str, value: int, count: int, of: str) -> None:
    if value < count or value % count:
        raise ValueError(f"{name} is {value}, expected a multiple of {count}, the number of {of}")


def _check_presets(expected: dict[str, str]) -> None:
    for name, kind in expected.items():
        if get_preset(name).model != kind:
            raise ValueError(f"preset {name!r} is a {get_preset(name).model}, expected a {kind}")
