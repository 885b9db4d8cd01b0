"""Train mar3d-tiny by class on a folder of real meshes, a few hundred of them, on the tokens of `tokenizers/pyramid_vae_meshes_small.py`.

First: that recipe, and `hiergen encode --tokenizer runs/pyramid_vae_meshes_small/model --shapes shapes --out runs/pyramid_vae_meshes_small/codes`.

Data: codes of pyramid-vae-meshes-small. Time: for a CPU. Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import ShapeGeneratorTaskConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        task=ShapeGeneratorTaskConfig(preset="mar3d-tiny", codes="runs/pyramid_vae_meshes_small/codes"),
        out="runs/mar3d_meshes_small",
        samples=12_000,
        batch_size=32,
        optim=OptimConfig(lr=1e-3, weight_decay=0.02, warmup_samples=1_000, final_lr_ratio=0.05),
        ema_decay=0.99,
        log_every=800,
        checkpoint_every=4_000,
    )


if __name__ == "__main__":
    main(recipe)
