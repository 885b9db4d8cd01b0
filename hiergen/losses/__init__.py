"""What models are trained on. The terms are put together, weighted and switched on in `hiergen.training.tasks`.

- `perceptual`, `alignment`, `occupancy`: distances of reconstructions to data, of features to a teacher's, of fields to labels.
- `adversarial`: the discriminator as a second player; the discriminators are in `patch_gan` and `dino_discriminator`.
- `adaptive_weight`, `vae_objective`: weights that balance gradients, and VA-VAE's objective made of them.
"""
