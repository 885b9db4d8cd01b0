"""Train HAR on the codes of `tokenizers/restok_emoji_64.py`: by group, subgroup and style, each of which may be left open.

First: `hiergen encode --tokenizer runs/restok_emoji_64/model --data.source npz:FILE --data.size 64 --data.hold-out 10
--data.hold-out-by name --data.label-column labels+styles --data.in-memory False --views flips --out runs/restok_emoji_64/codes`.

Data: codes of restok-emoji-64. Time: an hour or two on a CPU. Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import GeneratorTaskConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        task=GeneratorTaskConfig(
            preset="har-tiny",
            overrides={"dim": 160, "depth": 6, "num_heads": 5},
            codes="runs/restok_emoji_64/codes",
            class_paths=True,
        ),
        out="runs/har_emoji_64",
        samples=400_000,
        batch_size=32,
        precision="auto",
        optim=OptimConfig(lr=1e-3, weight_decay=0.05, warmup_samples=5_000, final_lr_ratio=0.05),
        ema_decay=0.999,
        log_every=2_000,
        checkpoint_every=20_000,
    )


if __name__ == "__main__":
    main(recipe)
