"""Train flextok-tiny on the embedded digits: a flow from noise to pixels, led by any prefix of 16 tokens.

Data: embedded digits. Time: half an hour of one CPU core, by the time of a step. Extra: none.

The first 16,000 samples were run (148 s): the codes are in use, and the decoder does not read them yet (`docs/log.md`).
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import TokenizerTaskConfig
from hiergen.training.tasks.term_settings import CodebookConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        # The loss is the flow's; the pixel error is that of a guess in one step, which is shown and not trained.
        task=TokenizerTaskConfig(preset="flextok-tiny", pixel_weight=0.0, codebook=CodebookConfig()),
        out="runs/flextok_tiny",
        samples=200_000,
        batch_size=32,
        optim=OptimConfig(lr=1e-3, warmup_samples=1_000, final_lr_ratio=0.05),
        ema_decay=0.99,
        log_every=1_000,
        checkpoint_every=10_000,
    )


if __name__ == "__main__":
    main(recipe)
