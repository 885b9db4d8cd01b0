"""Train mar3d-tiny, both stages at once, by class on the tokens of pyramid-vae-tiny.

First: `python tokenizers/pyramid_vae_tiny.py` and
`hiergen encode --tokenizer runs/pyramid_vae_tiny/model --shapes procedural --out runs/pyramid_vae_tiny/codes`.

Data: codes of pyramid-vae-tiny. Time: minutes on a CPU. Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import ShapeGeneratorTaskConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        task=ShapeGeneratorTaskConfig(preset="mar3d-tiny", codes="runs/pyramid_vae_tiny/codes"),
        out="runs/mar3d_tiny",
        samples=12_000,
        batch_size=32,
        optim=OptimConfig(lr=1e-3, weight_decay=0.02, warmup_samples=1_000, final_lr_ratio=0.05),
        ema_decay=0.99,
        log_every=800,
        checkpoint_every=4_000,
    )


if __name__ == "__main__":
    main(recipe)
