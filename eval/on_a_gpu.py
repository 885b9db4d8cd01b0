"""Everything that waits for a GPU, in one call of at most nine minutes.

    python eval/on_a_gpu.py --out runs/on_a_gpu
    python eval/on_a_gpu.py --toy True                     # every part at small sizes, also on a CPU, in under a minute

Kernels against the reference, times of pyramid sparse attention beside FlashAttention and cuDNN, sampling with CUDA graphs, training steps,
float16. Every part runs in a process of its own with a share of the time. One that fails, hangs or breaks the device is recorded with its
traceback, and the next begins. `on_a_gpu.json` is written anew after each part. On a CPU the Triton kernels run through the interpreter.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hiergen.benchmarks import attention as attention_benchmark
from hiergen.benchmarks import psa as psa_benchmark
from hiergen.benchmarks import restok as restok_benchmark
from hiergen.benchmarks import train_restok as training_benchmark
from hiergen.benchmarks.measuring.attention_inputs import structured_heads
from hiergen.benchmarks.measuring.graphs import captured
from hiergen.benchmarks.measuring.numerics import CASES, check_attention, check_preparation
from hiergen.benchmarks.measuring.parts import Part, Pieces, attempt, run_parts
from hiergen.benchmarks.measuring.timing import describe_machine, random_model, take_turns
from hiergen.benchmarks.measuring.work import measure_machine, measure_work
from hiergen.benchmarks.settings import AttentionSettings, PSASettings, ResTokSettings, TrainResTokSettings
from hiergen.config import nearest, parse
from hiergen.data.config import DataConfig
from hiergen.environment import choose_device
from hiergen.generators.level_ar.model import LevelARSettings
from hiergen.generators.masked.settings import MaskedARSettings
from hiergen.generators.next_scale.settings import NextScaleSettings
from hiergen.kernels.names import ImportanceName
from hiergen.kernels.pyramid_attention import make_plan, pyramid_sparse_attention
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.registry import get_preset
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import fit
from hiergen.training.optim import make_optimizer
from hiergen.training.reporting.throughput import flop_counter, measure_peak
from hiergen.training.tasks.base import Task
from hiergen.training.tasks.settings import TokenizerTaskConfig

FILE = "on_a_gpu.json"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure what waits for a GPU.

    Attributes:
        out: Folder of `on_a_gpu.json`.
        minutes: Time for all parts together; importing comes on top.
        only: Names of the parts to run; none for all.
        toy: Small sizes, to see that every part runs; without it a GPU is needed.
    """

    out: str = "runs/on_a_gpu"
    minutes: float = 8.4
    only: tuple[str, ...] = ()
    toy: bool = False

    def __post_init__(self) -> None:
        if self.minutes <= 0:
            raise ValueError(f"minutes is {self.minutes}, expected above 0")
        unknown = [name for name in self.only if name not in PARTS]
        if unknown:
            raise ValueError(f"only names {unknown[0]!r}, which is no part{nearest(unknown[0], PARTS)}")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the parts measure.

    Attributes:
        formats: Number formats of the kernels.
        cases: Cases of the comparison with the reference.
        machine: Limits of the measurement of the machine's rates.
        psa: Size of pyramid attention: 75,600 tokens and 40 heads of 128 channels are Wan 14B at 720 x 1280 with 81 frames.
        densities: Densities of pyramid attention.
        attention: Size of dense and level-masked attention.
        har: HAR's preset; the same for `var`, `mar`, `restok`.
        mar_steps: Unmasking steps of MAR and diffusion steps per token.
        sampling_format: Number format of weights that sample.
        batches: Numbers of images that are sampled at once.
        repeats: Measured runs of everything.
        compile: Arguments of `torch.compile`.
        training: Settings of a training step of the tokenizer.
        training_batches: Samples per training step of a generator, by preset.
        precisions: Precisions of the short training runs.
    """

    formats: tuple[str, ...] = ("bfloat16", "float16", "float32")
    cases: tuple[str, ...] = tuple(CASES)
    machine: dict[str, Any] = dataclasses.field(default_factory=dict)
    psa: dict[str, Any] = dataclasses.field(default_factory=lambda: {"drawn_heads": 4, "repeats": 3})
    densities: tuple[float, ...] = (0.12, 0.05, 0.25)
    attention: dict[str, Any] = dataclasses.field(default_factory=lambda: {"batch": 16, "dtype": "bfloat16"})
    har: str = "har-l"
    var: str = "var-d16"
    mar: str = "mar-b"
    mar_steps: tuple[int, int] = (64, 100)
    restok: str = "restok-l-128"
    sampling_format: str = "bfloat16"
    batches: tuple[int, ...] = (1, 64)
    repeats: int = 3
    compile: dict[str, Any] = dataclasses.field(default_factory=lambda: {"mode": "reduce-overhead"})
    training: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {"preset": "restok-l-128", "batch": 32, "dtype": "bfloat16", "repeats": 5}
    )
    training_batches: dict[str, int] = dataclasses.field(default_factory=lambda: {"har-l": 128, "mar-b": 64})
    precisions: tuple[str, ...] = ("bf16", "fp16")

    @property
    def device(self) -> torch.device:
        return choose_device("auto")


#: Compiling takes longer than a toy may: PyTorch's switch for tests leaves it out.
TOY = Sizes(
    formats=("float32", "float16"),
    cases=("small, causal",),
    machine={"megabytes": 8, "seconds": 0.01},
    psa={"tokens": 256, "heads": 2, "drawn_heads": 1, "dim": 16, "dtype": "float32", "key_block": 32, "query_block": 32, "repeats": 1},
    densities=(0.3,),
    attention={"layouts": ("dense", "har"), "tokens": 64, "heads": 2, "dim": 16, "backends": ("sdpa", "grouped"), "repeats": 1},
    har="har-tiny",
    var="var-tiny",
    mar="mar-tiny",
    mar_steps=(2, 2),
    restok="restok-tiny",
    sampling_format="float32",
    batches=(2,),
    repeats=1,
    compile={"disable": True},
    training={"preset": "restok-tiny", "batch": 2, "repeats": 1},
    training_batches={"har-tiny": 2},
    precisions=("no", "bf16"),
)  # fmt: skip


def machine(sizes: Sizes) -> Pieces:
    yield "device", describe_machine(sizes.device)
    yield "versions", {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    yield "rates", measure_machine(sizes.device, **sizes.machine)


def numerics(sizes: Sizes) -> Pieces:
    for name in sizes.cases:
        for dtype in sizes.formats:
            check = functools.partial(check_attention, CASES[name], getattr(torch, dtype), sizes.device)
            yield f"attention, {name}, {dtype}", attempt(check)
            check = functools.partial(check_preparation, CASES[name], getattr(torch, dtype), sizes.device)
            yield f"preparation, {name}, {dtype}", attempt(check)


def dense(sizes: Sizes) -> Pieces:
    yield "attention", attention_benchmark.run(AttentionSettings(**sizes.attention))


def psa(sizes: Sizes) -> Pieces:
    for density in sizes.densities:
        settings = PSASettings(**sizes.psa, density=density)
        yield f"density {density}", attempt(functools.partial(psa_benchmark.run, settings))


def psa_backward(sizes: Sizes) -> Pieces:
    """Both directions together, with a plan that is there already."""
    q, k, v, config = _psa_inputs(sizes)
    plan, flash = make_plan(q, k, config), torch.nn.attention.SDPBackend.FLASH_ATTENTION
    cudnn = torch.nn.attention.SDPBackend.CUDNN_ATTENTION

    def fused(backend: Any, *inputs: Tensor) -> Any:
        with torch.nn.attention.sdpa_kernel(backend):
            return nn.functional.scaled_dot_product_attention(*inputs)

    backend = "auto" if q.is_cuda else "gather"
    calls = {
        "dense, flash": functools.partial(fused, flash),
        "dense, cuDNN": functools.partial(fused, cudnn),
        "pyramid": lambda q, k, v: pyramid_sparse_attention(q, k, v, plan=plan, backend=backend),
    }
    for name, attend in calls.items():

        def both(attend: Callable[..., Any] = attend) -> Tensor:
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            attend(*leaves).sum().backward()
            return leaves[0].grad

        def measured(both: Callable[[], Tensor] = both) -> dict[str, Any]:
            return _times(both, sizes) | {"finite": bool(both().isfinite().all())}

        yield name, attempt(measured)
    yield "density", float(plan.density)


def planning(sizes: Sizes) -> Pieces:
    q, k, _, config = _psa_inputs(sizes)
    estimators: tuple[ImportanceName, ...] = ("pyramid", "block_mean", "antidiagonal", "sampled")
    for name in estimators:
        chosen = dataclasses.replace(config, importance=name)
        yield name, attempt(lambda chosen=chosen: _times(lambda: make_plan(q, k, chosen).pools, sizes))


def _psa_inputs(sizes: Sizes) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Return q, k, v and a config of the first density; heads are repeated, since drawing is slow."""
    settings = PSASettings(**sizes.psa, density=sizes.densities[0])
    grid, rng = psa_benchmark.video_grid(settings.tokens), torch.Generator().manual_seed(0)
    drawn = structured_heads(grid, heads=settings.drawn_heads or 1, dim=settings.dim, rng=rng)
    repeats = settings.heads // drawn[0].shape[1]
    q, k, v = (x.to(sizes.device, getattr(torch, settings.dtype)).repeat(1, repeats, 1, 1) for x in drawn)
    config = psa_benchmark.config_of_density(
        settings.density, settings.query_block, settings.key_block, settings.importance
    )
    return q, k, v, config


def restok(sizes: Sizes) -> Pieces:
    is_half = sizes.sampling_format != "float32"
    settings = ResTokSettings(
        preset=sizes.restok, batches=sizes.batches, repeats=sizes.repeats, dtype=sizes.sampling_format
    )  # type: ignore[arg-type]
    yield "against plain", attempt(lambda: restok_benchmark.run(settings))
    model = random_model(sizes.restok, "ResTok", seed=0).to(sizes.device)
    for batch in sizes.batches:
        pyramid = _random_pyramid(model.specs, batch, sizes.device)

        def decode(model: Any, pyramid: TokenPyramid = pyramid) -> Tensor:
            # Without its cache, which a graph would read after it is gone.
            half = torch.autocast(sizes.device.type, torch.bfloat16, enabled=is_half, cache_enabled=False)
            with torch.no_grad(), half:
                return model.decode(pyramid)

        yield from _modes(model, decode, "compile_decoding", f"decode {batch}", sizes)


def har(sizes: Sizes) -> Pieces:
    yield from _sampling(sizes.har, LevelARSettings.published(), sizes)


def var(sizes: Sizes) -> Pieces:
    yield from _sampling(sizes.var, NextScaleSettings.published(), sizes)


def mar(sizes: Sizes) -> Pieces:
    steps, head_steps = sizes.mar_steps
    yield from _sampling(sizes.mar, MaskedARSettings(num_steps=steps, head_steps=head_steps, guidance_scale=2.9), sizes)


def _sampling(preset: str, settings: Any, sizes: Sizes) -> Pieces:
    model = random_model(preset, get_preset(preset).model, seed=0)
    nn.Module.to(model, sizes.device, getattr(torch, sizes.sampling_format))
    for batch in sizes.batches:
        labels = (torch.arange(batch) % model.config["num_classes"]).to(sizes.device)

        def generate(model: Any, labels: Tensor = labels) -> Tensor:
            return model.generate(labels, settings).concat()

        yield from _modes(model, generate, "compile_sampling", f"batch {batch}", sizes)


def _modes(model: Any, call: Callable[[Any], Tensor], compiler: str, name: str, sizes: Sizes) -> Pieces:
    """Time a call as it is, as one CUDA graph of the whole, and with what it repeats compiled (mode "reduce-overhead": graphs of blocks)."""
    eager = functools.partial(call, model)

    def compiled() -> Callable[[], Tensor]:
        return functools.partial(call, getattr(copy.deepcopy(model), compiler)(**sizes.compile) or model)

    yield f"{name}, work", attempt(lambda: measure_work(eager))
    wanted = _seeded(eager)().clone()
    makers = {"eager": lambda: eager, "one graph": lambda: captured(eager, sizes.device), "compiled": compiled}
    for mode, make in makers.items():

        def measured(make: Callable[[], Callable[[], Tensor]] = make) -> dict[str, Any]:
            again = _seeded(make())
            found = _times(again, sizes)
            skips = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
            return found | {"equal": (again() == wanted).float().mean().item(), "graphs_skipped": skips}

        yield f"{name}, {mode}", attempt(measured)


def _seeded(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return a call whose draws are the same every time: those of PyTorch's default generator, the only one that graphs know."""

    def again() -> Tensor:
        torch.manual_seed(0)
        return call()

    return again


def _times(call: Callable[[], Any], sizes: Sizes) -> dict[str, Any]:
    seconds = take_turns({"call": call}, repeats=sizes.repeats, device=sizes.device)["call"]
    memory = torch.cuda.max_memory_allocated() / 2**30 if sizes.device.type == "cuda" else None
    return {"ms": 1e3 * statistics.median(seconds), "fastest_ms": 1e3 * min(seconds), "peak_memory_gib": memory}


def _random_pyramid(specs: tuple[LevelSpec, ...], batch: int, device: torch.device) -> TokenPyramid:
    tokens = sum(spec.num_tokens for spec in specs)
    rng, size = torch.Generator().manual_seed(0), specs[0].vocab_size
    if size is None:
        return TokenPyramid.split(torch.randn(batch, tokens, specs[0].dim, generator=rng).to(device), specs)
    return TokenPyramid.split(torch.randint(size, (batch, tokens), generator=rng).to(device), specs)


def training(sizes: Sizes) -> Pieces:
    yield "tokenizer", attempt(lambda: training_benchmark.run(TrainResTokSettings(**sizes.training)))
    peak = 1e12 * measure_peak(sizes.device, torch.bfloat16)
    yield "peak_flops_per_s", peak
    for preset, batch in sizes.training_batches.items():
        for is_compiled in (False, True):
            step = functools.partial(_generator_step, preset, batch, is_compiled, peak, sizes)
            yield f"{preset}, {'compiled' if is_compiled else 'eager'}", attempt(step)


def _generator_step(preset: str, batch: int, is_compiled: bool, peak: float, sizes: Sizes) -> dict[str, Any]:
    """Return times and MFU of a step of AdamW on a generator in bfloat16 autocast."""
    model = random_model(preset, get_preset(preset).model, seed=0).train()
    nn.Module.to(model, sizes.device)
    optimizer = make_optimizer(model, OptimConfig())
    pyramid = _random_pyramid(model.specs, batch, sizes.device)
    labels = (torch.arange(batch) % model.config["num_classes"]).to(sizes.device)

    def step() -> None:
        with torch.autocast(sizes.device.type, torch.bfloat16):
            loss = model.loss(pyramid, labels)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with flop_counter() as counter:
        step()
    flops = counter.get_total_flops()
    if is_compiled:
        model.compile(**{name: value for name, value in sizes.compile.items() if name == "disable"})
    found = _times(step, sizes)
    return found | {"samples_per_s": 1e3 * batch / found["ms"], "flops": flops, "mfu": 1e3 * flops / found["ms"] / peak}


@dataclasses.dataclass(frozen=True)
class Poisoned(TokenizerTaskConfig):
    """A tokenizer's task whose second loss is NaN."""

    def build(self) -> Task:
        task = super().build()
        losses, calls = task.losses, iter(range(10**6))

        def poisoned(*args: Any) -> dict[str, Tensor]:
            found = losses(*args)
            return {**found, "loss": found["loss"] * float("nan")} if next(calls) == 1 else found

        task.losses = poisoned  # type: ignore[method-assign]
        return task


def half_precision(sizes: Sizes) -> Pieces:
    """Sampling with float16 weights, which must stay finite."""
    for name, preset in (("har", sizes.har), ("var", sizes.var), ("mar", sizes.mar)):

        def sample(preset: str = preset) -> dict[str, Any]:
            model = random_model(preset, get_preset(preset).model, seed=0)
            nn.Module.to(model, sizes.device, torch.float16)
            # With the published spacing few steps of an untrained head reach numbers that float16 does not have.
            chosen = {"num_steps": 2, "head_steps": 8, "head_spacing": "leading"} if preset == sizes.mar else {}
            labels = torch.zeros(2, dtype=torch.int64, device=sizes.device)
            # Not finite logits or tokens are an error there.
            made = model.generate(labels, model.make_settings(**chosen), rng=torch.Generator().manual_seed(0))
            return {"tokens": made.num_tokens}

        yield f"sampling, {name}, float16", attempt(sample)


def short_run(number: int, sizes: Sizes) -> Pieces:
    """Train for some steps, of which one is bad: it alone is skipped. Accelerate keeps one precision per process."""
    precision: Any = sizes.precisions[number]
    task = Poisoned(preset="restok-tiny", data=DataConfig(source="digits", in_memory=True))
    with tempfile.TemporaryDirectory() as folder:
        run = TrainConfig(
            task=task, out=folder, samples=96, batch_size=8, precision=precision, log_every=8, trackers=()
        )
        log = fit(run, title=precision).log
    # The line of the bad step holds what is not a number, which JSON does not have.
    names = ("loss", "skipped", "loss_scale", "tokenizer/grad_norm")
    lines = [{name: repr(line[name]) for name in names if name in line} for line in log]
    yield precision, {"skipped": log[-1].get("skipped", 0), "log": lines}


#: Parts and their seconds of 540.
PARTS: dict[str, Part] = {
    "machine": Part(machine, 15.0),
    "numerics": Part(numerics, 60.0),
    "psa": Part(psa, 75.0),
    "psa backward": Part(psa_backward, 30.0),
    "planning": Part(planning, 20.0),
    "har": Part(har, 55.0),
    "restok": Part(restok, 35.0),
    "mar": Part(mar, 55.0),
    "var": Part(var, 55.0),
    "training": Part(training, 65.0),
    "half precision": Part(half_precision, 15.0),
    "short run": Part(functools.partial(short_run, 0), 10.0),
    "short run in half precision": Part(functools.partial(short_run, 1), 10.0),
    "dense": Part(dense, 40.0),
}


def main(settings: Settings) -> dict[str, Any]:
    """Run the parts and return what they found, written too."""
    device = choose_device("auto")
    if device.type == "cpu":
        if not settings.toy:
            raise ValueError("no GPU is seen, which the parts are for: give --toy True to try them on a CPU")
        # Before the processes of the parts import a kernel.
        os.environ["TRITON_INTERPRET"] = "1"
    chosen = {name: part for name, part in PARTS.items() if not settings.only or name in settings.only}
    return run_parts(
        chosen,
        TOY if settings.toy else Sizes(),
        seconds=60 * settings.minutes,
        output=Path(settings.out) / FILE,
        preload=("hiergen.training.loop", "hiergen.benchmarks.psa", "hiergen.benchmarks.train_restok", "__main__"),
    )


if __name__ == "__main__":
    main(parse(Settings(), None, prog="on_a_gpu", description=Settings.__doc__))
