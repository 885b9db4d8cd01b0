"""What a training run is. All horizons and intervals count samples seen, so a run means the same on 1 or 64 processes."""

from __future__ import annotations

import dataclasses
from typing import Literal

from hiergen.checked import Checked, Count, CountOrZero, Positive, Share
from hiergen.training.optim import OptimConfig
from hiergen.training.tasks.settings import TaskConfig

__all__ = ["LoraConfig", "OptimConfig", "TrainConfig"]


@dataclasses.dataclass(frozen=True)
class LoraConfig(Checked):
    """Low-rank adapters.

    Attributes:
        rank: Rank of each adapter; 0 trains all weights of the model and has no adapters.
        alpha: The adapters' output is multiplied by `alpha / rank`; None takes the rank, which multiplies by 1.
        targets: Ends of the dotted names of the linear layers to adapt, e.g. "qkv"; empty for every linear layer.

    Source:
        LoRA, arXiv:2106.09685.
    """

    rank: CountOrZero = 0
    alpha: Positive | None = None
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rank and (self.alpha is not None or self.targets):
            raise ValueError("lora.alpha or lora.targets is given, but lora.rank is 0: give --lora.rank too")


@dataclasses.dataclass(frozen=True)
class TrainConfig(Checked):
    """One training run.

    A run that is started again goes on, and so does a finished one with more `samples`. Of its fields may then change: `samples`, and
    those that `hiergen.training.checkpoints.run_state.MAY_CHANGE` names (where, how often and how much is saved and logged, how data is
    loaded and checked, how the same steps are computed). With any other change it is a new run, which `init` can start from the old one.

    Attributes:
        task: Settings of what is trained, on which data, with which losses.
        out: Folder of the run, for checkpoints, log, and at the end `model/` by `save_pretrained`.
        samples: Number of training samples to see.
        init: Weights to start a new run from: a model's folder, a pipeline's with such a model in it, a finished run's, the name of a
            packaged model ("digits-1d") or the id of a Hub repository. All sizes of the model come from there; the preset only says
            which class it is, and `task.overrides` are on top. None starts from random weights.
        init_except: Parts of the model, by a part of their dotted names, that may differ from `init`. What does not fit is drawn
            anew; "class_embedding", the table of classes, keeps the rows of classes of the same name.
        lora: Low-rank adapters to train in place of all weights of a generator.
        batch_size: Samples per optimizer step, over all processes and accumulation steps.
        accumulation: Number of parts into which each process cuts its share of a batch.
        seed: Seed of all random draws.
        precision: Number format of the passes: "no" is float32, "bf16" and "fp16" are autocast. "auto" is "bf16" where the device
            has instructions for its products and "no" elsewhere, where "bf16" takes many times as long on a CPU.
        num_workers: Number of processes that load data, per training process.
        optim: Settings of the optimizer of every player that has none of its own.
        ema_decay: Decay of the averaged weights, ramped as min(decay, (1 + s) / (10 + s)); None for no averaging.
        checkpoint_every: Number of samples between checkpoints; there is always one at the end.
        keep_last: Number of checkpoints to keep.
        background_checkpoints: Copy each checkpoint to the CPU and write it while the run goes on; this takes the memory of one more copy,
            and an error of writing is raised at the next checkpoint.
        log_every: Number of samples between log lines.
        data_check: How a resumed run checks that its data files are the same, beside their names and sizes: "sampled" reads bytes at fixed
            places of each (a few seconds for a hundred thousand pictures), "whole" reads all bytes, "none" reads nothing.
        max_skipped: Number of steps with non-finite gradients, which are skipped, that a run tolerates. Overflows that only lower the fp16
            loss scale are not counted. A run of which more than half of the steps were skipped for good ends with an error after its
            model is saved.
        keep_best: Entry of the log by which the best model is kept in `best/`, e.g. "val/psnr" or "loss". Its mean over each checkpoint
            interval is compared. None keeps the last model only.
        best_is: Whether the "lowest" or the "highest" value of `keep_best` is the best.
        compile: Run the players through `torch.compile`.
        sharding: How several processes hold the model: "full" shares out weights, gradients, moments and averages (FSDP), "none" keeps
            them whole on each. `accelerate launch --use_fsdp` means "full". "tensor" gives each some heads and hidden channels of every
            block of a `LevelAR`: all see the same samples, and a step takes one process's arithmetic divided by their number.
        activation_checkpointing: Recompute activations in the backward pass, in every player that can: less memory, more time.
        peak_tflops: Peak of one device in 10^12 operations per second, to log `mfu` against; "measure" times matrix products at the start;
            None logs no `mfu`.
        trackers: Trackers that the log goes to beside `log.jsonl`, by Accelerate's names: "tensorboard", "wandb", "trackio". None takes
            TensorBoard where it is installed; an empty list takes none.
    """

    task: TaskConfig
    out: str
    samples: Count
    init: str | None = None
    init_except: tuple[str, ...] = ()
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    batch_size: Count = 64
    accumulation: Count = 1
    seed: int = 0
    precision: Literal["no", "bf16", "fp16", "auto"] = "no"
    num_workers: CountOrZero = 0
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    ema_decay: Share | None = 0.9999
    checkpoint_every: Count = 1_000_000
    keep_last: Count = 2
    background_checkpoints: bool = False
    log_every: Count = 10_000
    data_check: Literal["sampled", "whole", "none"] = "sampled"
    max_skipped: CountOrZero = 100
    keep_best: str | None = None
    best_is: Literal["lowest", "highest"] = "lowest"
    compile: bool = False
    sharding: Literal["none", "full", "tensor"] = "none"
    activation_checkpointing: bool = False
    peak_tflops: Positive | Literal["measure"] | None = None
    trackers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_except and self.init is None:
            raise ValueError(f"init_except is {self.init_except}, but init is None: give --init, or leave it out")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size is {self.batch_size}, expected a multiple of accumulation {self.accumulation}"
            )

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run: samples over batch size, rounded up."""
        return -(-self.samples // self.batch_size)
