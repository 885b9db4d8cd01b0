"""Train mar-tiny-levels on the codes of hieratok-tiny-levels: the coarsest map first, every finer one given the coarser ones.

First: `python tokenizers/hieratok_tiny.py --task.preset hieratok-tiny-levels --out runs/hieratok_tiny_levels` and
`hiergen encode --tokenizer runs/hieratok_tiny_levels/model --out runs/hieratok_tiny_levels/codes`. All at once:
`hiergen quickstart --tokenizer hieratok-tiny-levels --generator mar-tiny-levels`.

Data: codes of hieratok-tiny-levels. Time: minutes on a CPU. Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import GeneratorTaskConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        task=GeneratorTaskConfig(preset="mar-tiny-levels", codes="runs/hieratok_tiny_levels/codes"),
        out="runs/mar_tiny_levels",
        samples=72_000,
        batch_size=32,
        optim=OptimConfig(lr=1e-3, warmup_samples=1_000, final_lr_ratio=0.05),
        ema_decay=0.995,
        log_every=1_000,
        checkpoint_every=10_000,
    )


if __name__ == "__main__":
    main(recipe)
