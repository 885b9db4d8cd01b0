"""Train pyramid-vae-tiny on procedural shapes: minutes on two CPU cores.

For meshes of your own: `hiergen prepare-shapes MESHES shapes --preset tiny`, then add `--task.data.source shapes`.

Data: procedural shapes. Time: minutes on a CPU. Extra: shapes.
"""

from hiergen.data.shapes.config import ShapeBatchConfig, ShapeDataConfig
from hiergen.geometry.surface_sampling import SamplingSettings
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import ShapeTokenizerTaskConfig


def recipe() -> TrainConfig:
    sampling = SamplingSettings(
        num_surface=4096, num_volume=8192, num_near=4096, near_sigmas=(0.02, 0.05), num_farthest=0
    )
    batch = ShapeBatchConfig(num_points=1024, num_ordered=256, num_queries=384)
    return TrainConfig(
        task=ShapeTokenizerTaskConfig(
            preset="pyramid-vae-tiny",
            data=ShapeDataConfig(count=512, sampling=sampling, batch=batch),
            near_weight=0.5,
            levels="in_turn",
        ),
        out="runs/pyramid_vae_tiny",
        samples=24_000,
        batch_size=8,
        optim=OptimConfig(lr=2e-3, betas=(0.9, 0.98), warmup_samples=800, final_lr_ratio=0.02),
        ema_decay=0.99,
        log_every=800,
        checkpoint_every=4_000,
    )


if __name__ == "__main__":
    main(recipe)
