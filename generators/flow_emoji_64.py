"""Train the flow transformer on the codes of `tokenizers/hieratok_emoji_64.py`: by group, subgroup and style, each of which may be left open.

First: `hiergen encode --tokenizer runs/hieratok_emoji_64/model --data.source npz:FILE --data.size 64 --data.hold-out 10
--data.hold-out-by name --data.label-column labels+styles --data.in-memory False --views flips --out runs/hieratok_emoji_64/codes`.

Data: codes of hieratok-emoji-64. Time: an hour or two on a CPU. Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import GeneratorTaskConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        task=GeneratorTaskConfig(
            preset="flow-tiny",
            overrides={"dim": 160, "depth": 6, "num_heads": 5, "use_qk_norm": True},
            codes="runs/hieratok_emoji_64/codes",
            class_paths=True,
        ),
        out="runs/flow_emoji_64",
        samples=1_200_000,
        batch_size=32,
        precision="auto",
        optim=OptimConfig(lr=1e-3, betas=(0.9, 0.99), warmup_samples=5_000, final_lr_ratio=0.05),
        ema_decay=0.999,
        log_every=2_000,
        checkpoint_every=20_000,
    )


if __name__ == "__main__":
    main(recipe)
