"""Train lightningdit-b on HieraTok's latents of ImageNet at 256 x 256: LightningDiT's short run of 80,000 steps.

This is the generator that compares tokenizers: the same run on the codes of `tokenizers/hieratok_b_256.py` with several scales and
with one. First: `hiergen encode --tokenizer runs/hieratok_b_256/model --data.source "wds:DATA/imagenet/train-*.tar" --data.size 256
--data.in-memory False --views flips --out runs/hieratok_b_256/codes`. Sample without guidance, 249 Euler steps, shift 0.3: the
defaults. Difference from the published run: the cache holds the modes of the latents, not samples of them.

Data: codes of hieratok-b-256. Time: wants several GPUs; not measured. Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import GeneratorTaskConfig

BATCH = 1_024


def recipe() -> TrainConfig:
    return TrainConfig(
        task=GeneratorTaskConfig(preset="lightningdit-b", codes="runs/hieratok_b_256/codes"),
        out="runs/lightningdit_b_256",
        samples=80_000 * BATCH,
        batch_size=BATCH,
        precision="bf16",
        optim=OptimConfig(lr=2e-4, betas=(0.9, 0.95), weight_decay=0.0, schedule="constant", clip_norm=None),
        ema_decay=0.9999,
        checkpoint_every=10_000 * BATCH,
        keep_last=8,
        log_every=200_000,
    )


if __name__ == "__main__":
    main(recipe)
