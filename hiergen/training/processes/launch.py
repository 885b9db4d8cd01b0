"""Accelerate as a run needs it: on all processes that were started, on GPUs or CPUs, with whole parameters on each."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from accelerate import Accelerator, DistributedType

from hiergen.environment import computes_bfloat16, leave_processes_at_exit, settle_threads
from hiergen.telling import say
from hiergen.training.config import TrainConfig
from hiergen.training.processes.sharding import launcher_shards, without_launchers_sharding


def make_accelerator(config: TrainConfig, trackers: Sequence[str], *, cpu: bool | None = None) -> Accelerator:
    """Return the accelerator of a run.

    Args:
        config: The run.
        trackers: Trackers of the log, by Accelerate's names.
        cpu: Force (True) or forbid (False) the CPU; None takes what Accelerate finds.

    Raises:
        ValueError: If Accelerate would shard or move parameters in a way of its own, the launcher started another number of processes
            than take part, or the precision is fp16 without a GPU.
    """
    started = int(os.environ.get("WORLD_SIZE", 1))
    # Unless it is told, Accelerate lets every process that a launcher started on CPUs train by itself.
    on_cpus = bool(cpu) or (cpu is None and started > 1 and not torch.accelerator.is_available())
    precision = _number_format(config, torch.device("cpu" if on_cpus or not torch.cuda.is_available() else "cuda"))
    with without_launchers_sharding():
        accelerator = Accelerator(
            mixed_precision=None if precision == "no" else precision,
            cpu=on_cpus,
            step_scheduler_with_optimizer=False,
            log_with=list(trackers) or None,
            project_dir=config.out,
        )
    # Afterwards, because Accelerate may choose a number of threads.
    settle_threads()
    leave_processes_at_exit()
    check_distributed(accelerator.distributed_type)
    if accelerator.num_processes != started and started > 1:
        raise ValueError(
            f"{started} processes were started, but {accelerator.num_processes} train together: each would write the same folder"
        )
    if config.precision == "fp16" and accelerator.scaler is None:
        # Accelerate would train in float32 without saying so.
        raise ValueError("precision is 'fp16', which needs a GPU for its scaler: on a CPU use 'bf16' or 'no'")
    return accelerator


def _number_format(config: TrainConfig, device: torch.device) -> str:
    """Return the precision that a run has on a device; say it where it was "auto", or where the device has no instructions for it."""
    fast, precision, said = computes_bfloat16(device), config.precision, ""
    if precision == "auto":
        precision = "bf16" if fast else "no"
        why = (
            f"whose products {fast} computes fast" if fast else "for this device is not known to compute bfloat16 fast"
        )
        said = f"precision auto: {precision!r}, {why}"
    elif precision == "bf16" and device.type == "cpu" and not fast:
        said = "precision is 'bf16', for which this processor has no instructions: 'no' or 'auto' may be many times as fast"
    if said and os.environ.get("RANK", "0") == "0":
        say(said)
    return precision


def is_sharded(config: TrainConfig, accelerator: Accelerator) -> bool:
    """Return whether a run shares out its parameters: its config or `accelerate launch` asked for it, and there are several processes.

    Raises:
        ValueError: If the launcher asks for what is not done here, or together with `config.compile`.
    """
    asked = launcher_shards() or config.sharding == "full"
    if config.compile and (asked or config.sharding == "tensor"):
        raise ValueError("compile and sharding are both set, expected one of them: it was not made to work together")
    if asked and config.sharding == "tensor":
        raise ValueError("sharding is 'tensor', but the launcher was told to shard (FSDP): expected one of them")
    return asked and accelerator.num_processes > 1


def is_split(config: TrainConfig, accelerator: Accelerator) -> bool:
    """Return whether the processes of a run split its blocks among them: each computes a part of the same samples."""
    return config.sharding == "tensor" and accelerator.num_processes > 1


def share_of_data(config: TrainConfig, accelerator: Accelerator) -> tuple[int, int]:
    """Return which share of every batch a process sees, and of how many: all of it where the blocks are split."""
    return (0, 1) if is_split(config, accelerator) else (accelerator.process_index, accelerator.num_processes)


def check_distributed(kind: DistributedType) -> None:
    """Raise if Accelerate would share out or move parameters itself.

    Raises:
        ValueError: For DeepSpeed and the like.
    """
    if kind != DistributedType.NO and not kind.value.startswith("MULTI_"):
        raise ValueError(
            f"Accelerate is set to {kind.value}, expected one process or several of data parallelism (MULTI_GPU, MULTI_CPU ...), "
            "with sharding='full' for shared-out parameters"
        )
