"""Train pyramid-vae-small on procedural shapes: each token has a place in space.

Its 64 tokens hold what its 8 cannot, so the finer level is ahead. What four fifths of this run reach: docs/results/shapes.md.

Data: procedural shapes. Time: a quarter of an hour of one CPU core. Extra: shapes.
"""

from hiergen.data.shapes.config import ShapeBatchConfig, ShapeDataConfig
from hiergen.geometry.surface_sampling import SamplingSettings
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import ShapeTokenizerTaskConfig


def recipe() -> TrainConfig:
    sampling = SamplingSettings(
        num_surface=4096, num_volume=16_384, num_near=8192, near_sigmas=(0.015, 0.04), num_farthest=0
    )
    batch = ShapeBatchConfig(num_points=1024, num_queries=768)
    return TrainConfig(
        task=ShapeTokenizerTaskConfig(
            preset="pyramid-vae-small",
            data=ShapeDataConfig(count=2048, sampling=sampling, batch=batch),
            near_weight=0.5,
            levels="in_turn",
            level_shares=(1, 3),
        ),
        out="runs/pyramid_vae_small",
        samples=80_000,
        batch_size=8,
        optim=OptimConfig(lr=2e-3, betas=(0.9, 0.98), warmup_samples=800, final_lr_ratio=0.02),
        ema_decay=0.99,
        log_every=800,
        checkpoint_every=4_000,
    )


if __name__ == "__main__":
    main(recipe)
