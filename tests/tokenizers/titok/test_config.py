from __future__ import annotations

import pytest
import torch

from hiergen.registry import create

#: Parameters of the official models, built by their program.
PARAMETERS = {
    "titok-l-32": 641_054_735,
    "titok-b-64": 204_814_095,
    "titok-s-128": 83_674_639,
    "titok-bl-64": 390_016_148,
    "titok-bl-128": 390_179_988,
    "titok-sl-256": 330_260_884,
    "titok-ll-32-vae": 606_879_604,
    "titok-bl-64-vae": 389_418_100,
    "titok-bl-128-vae": 389_581_940,
}
#: Encoder with its projection, latent tokens, decoder with its head.
PARTS = {
    "titok-l-32": (303_410_188, 32_768, 306_822_144),
    "titok-b-64": (85_904_652, 49_152, 88_070_656),
    "titok-s-128": (25_818_636, 65_536, 27_000_832),
}


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_presets_have_the_measured_numbers_of_parameters(name: str, count: int) -> None:
    with torch.device("meta"):
        model = create(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    tokens = int(name.split("-")[2])
    assert [spec.num_tokens for spec in model.specs] == [tokens]
    assert model.specs[0].is_discrete == (not name.endswith("vae"))


@pytest.mark.parametrize(("name", "counts"), PARTS.items())
def test_parts_have_the_measured_numbers_of_parameters(name: str, counts: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        model = create(name)

    def count(*modules: torch.nn.Module) -> int:
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    latents = model.encoder.latent_tokens.numel()
    assert (count(model.encoder, model.to_code) - latents, latents, count(model.decoder, model.head)) == counts
    assert count(model.pixel_decoder) == 30_478_339
    assert (model.quantizer.codebook.numel(), model.proxy_codebook.numel()) == (49_152, 262_144)


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ({"image_size": 30}, "image_size is 30, expected a multiple of patch_size, 8"),
        ({"encoder_heads": 3}, "encoder_heads is 3, expected a divisor of encoder_dim, 128"),
        ({"decoder_heads": 5}, "decoder_heads is 5, expected a divisor of decoder_dim, 128"),
        ({"output": "proxy"}, "patch_size is 8, expected the stride of the pixel decoder that reads proxy codes, 16"),
        ({"projection": "both"}, "projection is 'both', expected one of 'reinterpreted', 'per_token'"),
        ({"num_latent_tokens": 0}, "num_latent_tokens is 0, expected at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(overrides: dict[str, object], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        create("titok-tiny", **overrides)
