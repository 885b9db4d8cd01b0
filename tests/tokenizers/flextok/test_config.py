from __future__ import annotations

import pytest
import torch

from hiergen.registry import create

#: Encoder, decoder and all of the official models, with their fixed positions.
PARAMETERS = {
    "flextok-d12-d12": (85_382_406, 172_448_320, 341_651_737),
    "flextok-d18-d18": (287_326_086, 578_587_456, 949_734_553),
    "flextok-d18-d28": (287_326_086, 2_169_735_744, 2_540_882_841),
}


@pytest.mark.parametrize(("name", "counts"), PARAMETERS.items())
def test_presets_have_the_measured_numbers_of_parameters(name: str, counts: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        model = create(name)

    def count(module: torch.nn.Module) -> int:
        return sum(tensor.numel() for tensor in module.state_dict().values())

    assert (count(model.encoder), count(model.decoder), count(model)) == counts
    assert not any(parameter.requires_grad for parameter in model.vae.parameters())
    assert [spec.num_tokens for spec in model.specs] == [1, 1, 2, 4, 8, 16, 32, 64, 128]
    assert {(spec.dim, spec.vocab_size) for spec in model.specs} == {(6, 64_000)}


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (
            {"image_size": 30},
            "image_size is 30, expected a multiple of patch_size times the autoencoder's stride, 4 x 1",
        ),
        ({"num_registers": 12}, "num_registers is 12, expected a power of two"),
        ({"encoder_heads": 3}, "encoder_dim is 128 with 3 heads, expected a multiple of 4 and of encoder_heads"),
        ({"decoder_dim": 90}, "decoder_dim is 90 with 4 heads, expected a multiple of 4 and of decoder_heads"),
        ({"code_levels": [4, 1]}, r"levels is \(4, 1\), expected at least one channel, each of at least 2 levels"),
        ({"guidance": "none"}, "guidance is 'none', expected one of 'projected', 'plain'"),
        ({"num_steps": 0}, "num_steps is 0, expected at least 1"),
        ({"max_time": 0.0}, "max_time is 0.0, expected above 0"),
    ],
)
def test_what_does_not_fit_is_refused(overrides: dict[str, object], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        create("flextok-tiny", **overrides)
