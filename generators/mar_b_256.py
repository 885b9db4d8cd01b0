"""Train mar-b on KL-16's latents of ImageNet at 256 x 256, as published: 400 epochs of 2,048 images per step.

First: `hiergen convert ldm-vae kl16.ckpt runs/kl-16`, then
`hiergen encode --tokenizer runs/kl-16 --data.source "wds:DATA/imagenet/train-*.tar" --data.size 256 --data.in-memory False --views flips --out runs/kl-16/codes`.
Differences from the published run: the cache holds the modes of the latents and not their distributions, and the precision is bf16.

Data: codes of converted KL-16 weights on ImageNet. Time: wants several GPUs; not measured. Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import GeneratorTaskConfig

IMAGENET = 1_281_167
BATCH = 2_048


def recipe() -> TrainConfig:
    return TrainConfig(
        task=GeneratorTaskConfig(preset="mar-b", codes="runs/kl-16/codes"),
        out="runs/mar_b_256",
        samples=400 * IMAGENET,
        batch_size=BATCH,
        precision="bf16",
        optim=OptimConfig(
            lr=1e-4 * BATCH / 256,
            betas=(0.9, 0.95),
            weight_decay=0.02,
            # The diffusion head is not decayed.
            no_decay=("head.",),
            warmup_samples=100 * IMAGENET,
            schedule="constant",
            clip_norm=3.0,
        ),
        ema_decay=0.9999,
        checkpoint_every=5 * IMAGENET,
        log_every=200_000,
    )


if __name__ == "__main__":
    main(recipe)
