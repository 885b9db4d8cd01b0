"""Train pyramid-tiny-84 on the embedded digits: three levels, each from its own stage of a small encoder of depthwise convolutions.

Another mixer, or a network of timm, is one setting: `--task.overrides '{"backbone": "mixer:window"}'`.

Data: embedded digits. Time: two and a half minutes of processor time on a CPU. Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import TokenizerTaskConfig
from hiergen.training.tasks.term_settings import CodebookConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        task=TokenizerTaskConfig(
            preset="pyramid-tiny-84", pixel_weight=10.0, codebook=CodebookConfig(revive_after=500)
        ),
        out="runs/pyramid_tiny",
        samples=24_000,
        batch_size=32,
        optim=OptimConfig(lr=1e-3, warmup_samples=1_000, final_lr_ratio=0.05),
        ema_decay=0.99,
        log_every=1_000,
        checkpoint_every=10_000,
    )


if __name__ == "__main__":
    main(recipe)
