"""Train pyramid-vae-shapes at the size of MAR-3D: 256 and 1024 tokens from 16384, 4096 and 1024 points.

First: `hiergen prepare-shapes MESHES shapes`. The paper trained on 260 000 Objaverse meshes for 200 epochs and then on 60 000 for 100;
neither the set nor the optimizer's settings were published. The learning rate here is the release's, the length is the first part.
Not yet run at this size.

Data: hundreds of thousands of meshes, prepared. Time: wants several GPUs; not yet run. Extra: shapes.
"""

from hiergen.data.shapes.config import ShapeBatchConfig, ShapeDataConfig
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import ShapeTokenizerTaskConfig


def recipe() -> TrainConfig:
    batch = ShapeBatchConfig(num_points=16_384, num_ordered=4096, num_queries=2048, yaw=True)
    return TrainConfig(
        task=ShapeTokenizerTaskConfig(
            preset="pyramid-vae-shapes", data=ShapeDataConfig(source="shapes", batch=batch), near_weight=1.0
        ),
        out="runs/pyramid_vae_shapes",
        samples=52_000_000,
        batch_size=256,
        precision="auto",
        num_workers=8,
        optim=OptimConfig(lr=1e-4, betas=(0.9, 0.99), weight_decay=0.01, warmup_samples=1_280_000, final_lr_ratio=0.0),
        ema_decay=0.9999,
        log_every=100_000,
    )


if __name__ == "__main__":
    main(recipe)
