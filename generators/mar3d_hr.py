"""Train the fine stage of mar3d (1024 tokens, which see the coarse ones through noise), started from the coarse stage.

First: `python generators/mar3d_lr.py`. Not yet run at this size.

Data: codes of pyramid-vae-shapes, the coarse stage mar3d-lr. Time: wants several GPUs; not yet run. Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import ShapeGeneratorTaskConfig


def recipe() -> TrainConfig:
    task = ShapeGeneratorTaskConfig(
        preset="mar3d",
        condition="image",
        codes="runs/pyramid_vae_shapes/codes",
        stages="high",
        start="runs/mar3d_lr/model",
    )
    return TrainConfig(
        task=task,
        out="runs/mar3d_hr",
        samples=52_000_000,
        batch_size=512,
        precision="bf16",
        num_workers=4,
        optim=OptimConfig(
            lr=1e-4, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.01, warmup_samples=2_560_000, schedule="constant"
        ),
        ema_decay=0.9999,
        log_every=100_000,
    )


if __name__ == "__main__":
    main(recipe)
