"""Does the token mixer matter, and which ones pay? Pyramid tokenizers that differ in the mixer of their encoder alone, at equal parameters.

    python eval/study_mixers.py --data idx:DATA/fashion-mnist --out runs/study_mixers --part cost
    python eval/study_mixers.py --data idx:DATA/fashion-mnist --out runs/study_mixers

A stopped study continues. All arms have the same widths, depths and decoder, and a 3 x 3 depthwise term where attention has no positions of its
own; the hidden width of the MLPs makes up for the parameters of the mixers. The rate of each arm is the best of `rates` on seed 0, on a part of
the training images that no arm trains on; test images are scored once, with all seeds. `shuffled` is the PSNR with the positions of every
mixer's input permuted: an arm whose PSNR does not fall does not use its mixer.

The score of an arm is `mean`, the mean PSNR of all prefixes. A mixer pays if its gain over "none" is shown, and no arm whose encoder takes less
processor time (part "cost") is shown to be better. Shown is what Student's 95 % interval of the differences by seed leaves on one side of 0.
"""

import dataclasses
import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hiergen.config import parse
from hiergen.data.config import DataConfig
from hiergen.data.sources import open_images
from hiergen.evaluation.study import Estimate, Study, StudyResult, StudySettings
from hiergen.files import write_json, write_text
from hiergen.metrics.codebook import codebook_use_by_level
from hiergen.metrics.pixel import psnr
from hiergen.nn.mixers.base import TokenMixer
from hiergen.pyramid import TokenPyramid
from hiergen.registry import create
from hiergen.tokenizers.pyramid.encoder import PyramidEncoder
from hiergen.tokenizers.pyramid.model import PyramidTokenizer

#: The mixer of each arm and its options; the blocks of a stage take several in turn. The first is the control.
ARMS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "none": ("none", [{}]),
    "depthwise": ("depthwise", [{"kernel_size": 7}]),
    "window": ("window", [{"window": 4, "local": True}, {"window": 4, "shift": 2, "local": True}]),
    "neighborhood": ("neighborhood", [{"kernel": 3, "local": True}, {"kernel": 3, "dilation": 2, "local": True}]),
    "gated-conv": ("gated_conv", [{"order": 3}]),
    "linear": ("linear", [{"kernel_size": 3}]),
    "attention": ("attention", [{"local": True}]),
    "hyena": ("hyena", [{"directions": "four_projected", "filter_dim": 16}]),
}
#: Networks of timm beside the arms, at about as many parameters: their stems are of 4 pixels, the norms and the MLPs are their own.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "timm-convnext": (
        "timm:convnext_atto",
        # Its branches begin at 1e-6 by default, which takes hundreds of epochs.
        {"dims": [16, 32, 48, 48], "depths": [2, 2, 2, 1], "out_indices": [0, 1, 2], "ls_init_value": 1.0},
    ),
    "timm-pvt": (
        "timm:pvt_v2_b0",
        {
            "embed_dims": [16, 32, 48, 48],
            "depths": [2, 2, 1, 1],
            "num_heads": [1, 2, 3, 3],
            "mlp_ratios": [3, 3, 3, 3],
            "sr_ratios": [2, 1, 1, 1],
            "out_indices": [0, 1, 2],
        },
    ),
}


#: Encoders whose maps are of 16 x 16 at 32 pixels, so that windows are local, and whose branches count from the first step.
ENCODER: dict[str, Any] = {"widths": [16, 32, 48], "depths": [2, 2, 1], "stem": 2, "head_dim": 16, "layer_scale": 1.0}
#: A decoder that costs less than the encoders.
DECODER: dict[str, Any] = {
    "decoder_channels": 16,
    "decoder_multipliers": [1],
    "decoder_stem": 2,
    "decoder_mid_blocks": 0,
    "decoder_groups": 4,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(StudySettings):
    """Budget and data of the study.

    Attributes:
        data: Source of the images, as `DataConfig.source`.
        hold_out: Held-out share of a source without a test split, as `DataConfig.hold_out`.
        hold_out_by: What is held out, as `DataConfig.hold_out_by`.
        size: Side of the images in pixels, before `pad`.
        pad: Black pixels added on every side.
        part: Part of the study: "reconstruction" or "cost", the operations and the time of the encoders.
        arms: Names of the arms, "none" first; all of our own mixers if none is named. Beside networks of timm, `stem` must be 4.
        rates: Learning rates that are tried for each arm.
        search_steps: Optimizer steps of the runs that choose the rate; None for the length of the others.
        encoder: Options of the encoders of our own mixers, the same for all, e.g. a smaller `stem` for larger maps.
        parameters: Parameters of every encoder of our own mixers, within 3 %.
        decoder: Options of the tokenizers that replace those of pyramid-tiny-84, the same for all, e.g. a decoder that costs little.
        num_train: Number of training images.
        num_validation: Number of further training images, on which rates are chosen.
        num_test: Number of test images.
        steps: Optimizer steps of a run.
        batch_size: Images per step.
    """

    data: str = "idx:DATA/fashion-mnist"
    hold_out: int = 0
    hold_out_by: Literal["number", "name"] = "number"
    size: int = 28
    pad: int = 2
    part: Literal["reconstruction", "cost"] = "reconstruction"
    out: str = "runs/study_mixers"
    arms: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (5e-3,)
    search_steps: int | None = None
    encoder: dict[str, Any] = dataclasses.field(default_factory=lambda: dict(ENCODER))
    parameters: int = 75_000
    decoder: dict[str, Any] = dataclasses.field(default_factory=lambda: dict(DECODER))
    num_train: int = 10_000
    num_validation: int = 0
    num_test: int = 500
    steps: int = 300
    batch_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        known = (*ARMS, *NETWORKS)
        unknown = [name for name in self.arms if name not in known]
        if unknown or (self.arms and self.arms[0] != "none"):
            raise ValueError(f"arms is {list(self.arms)}, expected 'none' first, then any of {', '.join(known)}")


def overrides(arm: str, encoder: Mapping[str, Any], parameters: int) -> dict[str, Any]:
    """Return what makes pyramid-tiny-84 an arm: the MLPs are as wide as the wanted number of parameters allows.

    Args:
        arm: A name of `ARMS` or `NETWORKS`.
        encoder: Options of `MixerPyramid` that all arms of `ARMS` share.
        parameters: Wanted parameters of the encoder.

    Raises:
        ValueError: If no width of the MLPs comes within 3 % of the number.
    """
    if arm in NETWORKS:
        backbone, sizes = NETWORKS[arm]
        return {"backbone": backbone, "backbone_options": sizes}
    mixer, options = ARMS[arm]

    def made(ratio: float) -> dict[str, Any]:
        return {
            "backbone": f"mixer:{mixer}",
            "backbone_options": {**encoder, "mlp_ratio": ratio, "mixer_options": options},
        }

    def count(ratio: float) -> int:
        chosen = made(ratio)
        with torch.device("meta"):
            found = PyramidEncoder.create(chosen["backbone"], image_size=(32, 32), options=chosen["backbone_options"])
        return sum(p.numel() for p in found.parameters() if p.requires_grad)

    # The number of parameters is a line in the ratio, but for rounding.
    least, most = count(1.0), count(3.0)
    ratio = 1.0 + 2.0 * (parameters - least) / (most - least)
    if ratio < 0.1 or abs(count(ratio) / parameters - 1) > 0.03:
        raise ValueError(
            f"parameters is {parameters}, expected a number that {arm!r} can have; it has {least} with MLPs of ratio 1"
        )
    return made(round(ratio, 4))


class MixerStudy(Study[Settings]):
    """The runs of all arms."""

    FREE = (*Study.FREE, "arms", "part")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        train = self._images("train", settings.num_train + settings.num_validation)
        self.train, self.validation = train[: settings.num_train], train[settings.num_train :]
        self.test = self._images("test", settings.num_test)
        self.arms = settings.arms or tuple(ARMS)

    def _images(self, split: Literal["train", "test"], count: int) -> Tensor:
        settings = self.settings
        config = DataConfig(
            source=settings.data,
            split=split,
            hold_out=settings.hold_out,
            hold_out_by=settings.hold_out_by,
            size=settings.size,
        )
        pictures = cast(Any, open_images(config))
        # In a fixed random order: archives are often sorted by class.
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[:count]
        found = pictures.batch([(index, 0) for index in order.tolist()], seed=0)["image"]
        return F.pad(found, [settings.pad] * 4, value=-1.0)

    def reconstruction(self) -> StudyResult:
        """Train all arms with all seeds, each at its best rate, and score every prefix of levels on the test images."""

        def run(arm: str, seed: int, folder: Path) -> Mapping[str, float]:
            rate = self._rate(arm)
            model = self._trained(arm, rate, seed)
            model.save_pretrained(folder / "model")
            pyramid = _encode(model, self.test)
            prefixes = {f"psnr_{k}": _psnr(model, pyramid.prefix(k), self.test) for k in model.decodable_levels}
            with _shuffled(model):
                shuffled = _encode(model, self.test)
            mean = statistics.fmean(prefixes.values())
            use = {f"codes_{k}": one.used * 256 for k, one in enumerate(codebook_use_by_level(pyramid), 1)}
            return {**prefixes, "mean": mean, "shuffled": _psnr(model, shuffled, self.test), **use, "rate": rate}

        changes = {arm: overrides(arm, self.settings.encoder, self.settings.parameters) for arm in self.arms}
        return self.run("reconstruction", run, self.arms, changes)

    @functools.cache  # noqa: B019  # one study per program
    def _rate(self, arm: str) -> float:
        """Return the rate with the best PSNR of all levels on the validation images, with seed 0, or the one that a finished run took."""
        settings = self.settings
        finished = self.out / "reconstruction" / arm / "seed-0" / "result.json"
        # Whoever reads it has checked that it is a run of the same settings: seed 0 comes first.
        if settings.seeds[0] == 0 and finished.is_file():
            return float(json.loads(finished.read_text())["metrics"]["rate"])

        def score(rate: float) -> float:
            model = self._trained(arm, rate, 0, steps=settings.search_steps)
            return _psnr(model, _encode(model, self.validation), self.validation)

        return settings.rates[0] if len(settings.rates) == 1 else max(settings.rates, key=score)

    def _tokenizer(self, arm: str) -> PyramidTokenizer:
        settings = self.settings
        sizes = {"image_size": self.train.shape[-1], **settings.decoder}
        made = create("pyramid-tiny-84", **sizes, **overrides(arm, settings.encoder, settings.parameters))
        return cast(PyramidTokenizer, made)

    def _trained(self, arm: str, rate: float, seed: int, *, steps: int | None = None) -> PyramidTokenizer:
        """Return a tokenizer trained on squared error and the losses of its levels; the same batches for the same seed."""
        settings = self.settings
        torch.manual_seed(seed)
        model = self._tokenizer(arm).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
        order, noise = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
        count = steps or settings.steps
        for step in range(count):
            done = step / count
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, done / 0.05 + 1e-2, 0.5 + 0.5 * math.cos(math.pi * done))
            images = self.train[torch.randint(len(self.train), (settings.batch_size,), generator=order)]
            output = model(images, rng=noise)
            loss = 10.0 * (output.reconstruction - images).square().mean() + sum(output.losses.values())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return model.eval()

    def cost(self) -> dict[str, dict[str, float]]:
        """Return parameters, multiply-adds and processor time per image of every encoder, the arms in turn in one process."""
        encoders = {arm: self._tokenizer(arm).encoder.eval() for arm in self.arms}
        found: dict[str, dict[str, float]] = {}
        times: dict[tuple[str, int], list[float]] = {}
        for arm, encoder in encoders.items():
            # Only as plain products are those of attention counted on a CPU.
            plain = sdpa_kernel(SDPBackend.MATH)
            with FlopCounterMode(display=False) as counter, plain, torch.no_grad():
                encoder(self.test[:1])
            count = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
            # Fourier transforms and elementwise work are not in it.
            found[arm] = {"parameters": count, "multiply_adds": counter.get_total_flops() / 2}
        for _ in range(21):
            for batch in (1, 64):
                for arm, encoder in encoders.items():
                    start = time.process_time()
                    with torch.no_grad():
                        encoder(self.test[:1].expand(batch, -1, -1, -1))
                    times.setdefault((arm, batch), []).append((time.process_time() - start) / batch)
        for (arm, batch), spent in times.items():
            found[arm][f"milliseconds_{batch}"] = 1e3 * statistics.median(spent)
        return found


def verdicts(result: StudyResult, costs: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Return by arm, the control left out, whether its mixer pays, and if not, why.

    Args:
        result: Runs of all arms.
        costs: What `MixerStudy.cost` found of the same arms.

    Raises:
        ValueError: If the cost of an arm is not there.
    """
    missing = [arm for arm in result.values if arm not in costs]
    if missing:
        raise ValueError(f"costs have no {', '.join(missing)}, expected all arms: run --part cost with them")

    def is_better(arm: str, other: str) -> bool:
        theirs = result.values[other]
        gain = Estimate.of([found["mean"] - theirs[seed]["mean"] for seed, found in result.values[arm].items()])
        return gain.mean - gain.half_width > 0

    def time_of(arm: str) -> float:
        return costs[arm]["milliseconds_64"]

    said = {}
    for arm in list(result.values)[1:]:
        better = [other for other in result.values if time_of(other) < time_of(arm) and is_better(other, arm)]
        if better:
            said[arm] = f"does not pay: {', '.join(better)} better in less time"
        else:
            gains = is_better(arm, result.baseline)
            said[arm] = "pays" if gains else f"does not pay: no gain over {result.baseline} is shown"
    return said


class _shuffled:  # noqa: N801  # read as a verb
    """Within it, every mixer of a model sees its positions in a fixed random order, and its outputs go back to theirs."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._mixers = [module for module in model.modules() if isinstance(module, TokenMixer)]
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        def order(x: Tensor) -> Tensor:
            return torch.randperm(x.shape[1] * x.shape[2], generator=torch.Generator().manual_seed(0))

        def before(module: Any, inputs: tuple[Tensor]) -> Tensor:
            (x,) = inputs
            return x.flatten(1, 2)[:, order(x)].view_as(x)

        def after(module: Any, inputs: Any, out: Tensor) -> Tensor:
            return out.flatten(1, 2)[:, order(out).argsort()].view_as(out)

        for mixer in self._mixers:
            self._handles += [mixer.register_forward_pre_hook(before), mixer.register_forward_hook(after)]

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()


def _encode(model: PyramidTokenizer, images: Tensor) -> TokenPyramid:
    parts = [model.encode(part) for part in images.split(250)]
    return TokenPyramid(tuple(torch.cat(level) for level in zip(*(p.levels for p in parts), strict=True)), model.specs)


@torch.no_grad()
def _psnr(model: PyramidTokenizer, pyramid: TokenPyramid, images: Tensor) -> float:
    """Return the mean PSNR in dB of what is decoded."""
    starts = range(0, len(images), 250)
    parts = [model.decode(pyramid[start : start + 250]).clamp(-1, 1) for start in starts]
    return float(psnr(torch.cat(parts), images).mean())


def main(settings: Settings) -> None:
    """Run a part of the study and write its table."""
    torch.set_num_threads(1)
    study = MixerStudy(settings)
    if settings.part == "cost":
        found = study.cost()
        write_json(study.out / "cost.json", found)
        names = list(next(iter(found.values())))
        rows = [["arm", *(name.replace("_", " ") for name in names)], ["---"] * (len(names) + 1)]
        rows += [[arm, *(f"{row[name]:,.4g}" for name in names)] for arm, row in found.items()]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        text = "\n".join(lines) + "\n"
    else:
        result = study.reconstruction()
        levels = range(1, 1 + sum(name.startswith("codes_") for name in next(iter(result.values["none"].values()))))
        shown = {f"psnr_{k}": f"PSNR (dB), {k} of {len(levels)} levels" for k in levels} | {
            "mean": "mean of the prefixes",
            "shuffled": "shuffled",
        }
        text = (
            result.table(shown, digits=2)
            + "\n"
            + result.table({f"codes_{k}": f"codes, level {k}" for k in levels}, digits=0)
        )
        if (study.out / "cost.json").is_file():
            costs = json.loads((study.out / "cost.json").read_text())
            lines = [f"- {arm}: {said}" for arm, said in verdicts(result, costs).items()]
            text += "\n" + "\n".join(lines) + "\n"
    write_text(study.out / f"{settings.part}.md", text)
    print(text)


if __name__ == "__main__":
    main(parse(Settings(), sys.argv[1:], prog=sys.argv[0]))
