"""Train flow-tiny on the codes of hieratok-tiny.

First: `python tokenizers/hieratok_tiny.py` and `hiergen encode --tokenizer runs/hieratok_tiny/model --out runs/hieratok_tiny/codes`.

Data: codes of hieratok-tiny. Time: minutes on a CPU. Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import GeneratorTaskConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        task=GeneratorTaskConfig(preset="flow-tiny", codes="runs/hieratok_tiny/codes"),
        out="runs/flow_tiny",
        samples=48_000,
        batch_size=32,
        optim=OptimConfig(lr=1e-3, warmup_samples=1_000, final_lr_ratio=0.05),
        ema_decay=0.995,
        log_every=1_000,
        checkpoint_every=10_000,
    )


if __name__ == "__main__":
    main(recipe)
