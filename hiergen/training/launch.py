"""Accelerate as a run needs it: on all processes that were started, on GPUs or CPUs, with whole parameters on each."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from accelerate import Accelerator, DistributedType

from hiergen.training.config import TrainConfig


def make_accelerator(config: TrainConfig, trackers: Sequence[str], *, cpu: bool | None = None) -> Accelerator:
    """Return the accelerator of a run.

    Args:
        config: The run.
        trackers: By Accelerate's names.
        cpu: Force (True) or forbid (False) the CPU; None takes what Accelerate finds.

    Raises:
        ValueError: If parameters would be sharded, the launcher started another number of processes than take part, or the precision is
            fp16 without a GPU.
    """
    started = int(os.environ.get("WORLD_SIZE", 1))
    # Unless it is told, Accelerate lets every process that a launcher started on CPUs train by itself.
    on_cpus = cpu is None and started > 1 and not torch.accelerator.is_available()
    accelerator = Accelerator(
        mixed_precision=None if config.precision == "no" else config.precision,
        cpu=bool(cpu) or on_cpus,
        step_scheduler_with_optimizer=False,
        log_with=list(trackers) or None,
        project_dir=config.out,
    )
    check_distributed(accelerator.distributed_type)
    if accelerator.num_processes != started and started > 1:
        raise ValueError(
            f"{started} processes were started, but {accelerator.num_processes} train together: each would write the same folder"
        )
    if config.precision == "fp16" and accelerator.scaler is None:
        # Accelerate would train in float32 without saying so.
        raise ValueError("precision is 'fp16', which needs a GPU for its scaler: on a CPU use 'bf16' or 'no'")
    return accelerator


def check_distributed(kind: DistributedType) -> None:
    """Raise if parameters would be sharded or moved: weights, averages and checkpoints are whole on every process.

    Raises:
        ValueError: For FSDP, DeepSpeed and the like.
    """
    if kind != DistributedType.NO and not kind.value.startswith("MULTI_"):
        raise ValueError(
            f"Accelerate is set to {kind.value}, expected one process or data parallelism (MULTI_GPU, MULTI_CPU ...): "
            "averages, skipped steps and checkpoints need whole parameters on every process"
        )
