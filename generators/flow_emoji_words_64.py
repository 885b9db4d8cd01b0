"""Train a flow on the codes of an emoji tokenizer by words: names, groups and styles, read by an encoder of words that is trained along.

It goes on from the flow by class of `flow_emoji_64.py`, whose blocks then also look at the words.

First: `hiergen encode --tokenizer emoji --data.source npz:FILE --data.size 64 --data.hold-out 10 --data.hold-out-by name
--data.label-column labels+styles --data.in-memory False --out runs/emoji_words_64/codes --data.captions "{text}" "{color} {text}"
"{text}, {attribute}" "{color} {text}, {attribute}" "{text}, {subgroup}, {attribute}" "{color} {subgroup}, {attribute}"`. FILE is made by
`demos/render_emoji.py`; texts are Unicode's names, colors are seen in the pictures. No mirror images: they would have the same captions.

The packaged "emoji" was trained twice as long, in two runs (docs/results/words.md). `--compile True` is a third faster with a C++ compiler.

Data: codes of the packaged tokenizer "emoji". Time: an hour or two on a CPU. Extra: none.
"""

from hiergen.data.text.config import CaptionConfig
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import GeneratorTaskConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        task=GeneratorTaskConfig(
            preset="flow-tiny",
            codes="runs/emoji_words_64/codes",
            captions=CaptionConfig(num_tokens=16, dim=96, depth=1),
        ),
        init="runs/flow_emoji_64/model",
        init_except=("label_embed", "cross"),
        out="runs/flow_emoji_words_64",
        samples=320_000,
        batch_size=64,
        precision="auto",
        optim=OptimConfig(lr=1.5e-3, betas=(0.9, 0.99), warmup_samples=3_000, final_lr_ratio=0.05),
        ema_decay=0.999,
        log_every=2_000,
        checkpoint_every=16_000,
    )


if __name__ == "__main__":
    main(recipe)
