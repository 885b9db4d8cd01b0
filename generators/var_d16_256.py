"""Train VAR-d16 on ten-crop codes of ImageNet at 256x256: 768 samples per step, 200 epochs, 8 GPUs and more.

First: `hiergen convert var vae_ch160v4096z32.pth runs/multiscale_vq_256/model` (or `hiergen train multiscale-vq-256`), then
`hiergen encode --tokenizer runs/multiscale_vq_256/model --data.source imagenet/train --data.size 256 --data.in-memory False --views
ten_crop --out runs/multiscale_vq_256/codes`. The other published sizes by `--task.preset`: var-d20 in 250 epochs; var-d24 and var-d30 in
350 epochs with `--optim.lr` 2.4e-4 and 3.2e-4 and `--optim.final-lr-ratio 0.01`, var-d30 with 1,024 samples per step.

Differences from the published run: codes are of ten crops made once, not of a new random crop without mirroring at every visit; warm-up
begins at 0; the table of classes is not decayed; weight decay does not rise to 0.08 for var-d30 and larger; bf16, not fp16.

Data: codes of multiscale-vq-680. Time: published 2.5 days on 16 A100; not measured. Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import GeneratorTaskConfig

BATCH = 768
EPOCH = 1_281_167


def recipe() -> TrainConfig:
    return TrainConfig(
        task=GeneratorTaskConfig(
            preset="var-d16", codes="runs/multiscale_vq_256/codes", tokenizer="runs/multiscale_vq_256/model"
        ),
        out="runs/var_d16_256",
        samples=200 * EPOCH,
        batch_size=BATCH,
        precision="bf16",
        num_workers=4,
        optim=OptimConfig(
            lr=3e-4,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup_samples=4 * EPOCH,
            schedule="linear",
            final_lr_ratio=0.1,
            clip_norm=2.0,
        ),
        ema_decay=None,
        log_every=100 * BATCH,
        checkpoint_every=10 * EPOCH,
    )


if __name__ == "__main__":
    main(recipe)
