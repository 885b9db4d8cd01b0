"""Train pyramid-vae-tiny on a folder of real meshes, a few hundred of them: the small recipe for meshes of your own.

First: `hiergen prepare-shapes MESHES shapes --classes-from name --sampling.num-surface 8192 --sampling.num-volume 8192
--sampling.num-near 4096 --sampling.num-farthest 1024 --views.num-views 0`.
The settings are those of `pyramid_vae_tiny.py`, with turns about the vertical axis, since there are few shapes. What it reaches:
docs/results/shapes.md.

Data: a few hundred meshes, prepared. Time: for a CPU. Extra: shapes.
"""

from hiergen.data.shapes.config import ShapeBatchConfig, ShapeDataConfig
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import ShapeTokenizerTaskConfig


def recipe() -> TrainConfig:
    batch = ShapeBatchConfig(num_points=1024, num_ordered=256, num_queries=384, yaw=True)
    return TrainConfig(
        task=ShapeTokenizerTaskConfig(
            preset="pyramid-vae-tiny",
            data=ShapeDataConfig(source="shapes", batch=batch),
            near_weight=0.5,
            levels="in_turn",
        ),
        out="runs/pyramid_vae_meshes_small",
        samples=18_000,
        batch_size=8,
        optim=OptimConfig(lr=2e-3, betas=(0.9, 0.98), warmup_samples=800, final_lr_ratio=0.02),
        ema_decay=0.99,
        log_every=800,
        checkpoint_every=4_000,
    )


if __name__ == "__main__":
    main(recipe)
