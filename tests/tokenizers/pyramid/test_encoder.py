from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hiergen.nn.mixers.create import MIXERS
from hiergen.tokenizers.pyramid.encoder import PyramidEncoder

pytest.importorskip("timm")

#: Small networks of timm by keyword, with the layout of their features and how many pixels their coarsest cell has.
NETWORKS: dict[str, dict[str, Any]] = {
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    "pvt_v2_b0": {"embed_dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)},
    "swin_tiny_patch4_window7_224": {
        "window_size": 4, "embed_dim": 16, "depths": (2, 2, 2), "num_heads": (1, 2, 4), "patch_size": 2
    },
    "swinv2_cr_tiny_ns_224": {"window_size": 4, "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 4)},
    "mambaout_femto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    "efficientvit_b0": {"out_indices": (1, 2)},
    "resnet18": {},
}  # fmt: skip
SIZES = [(32, 32), (64, 96), (48, 80)]


def images(height: int, width: int, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def make(name: str, size: tuple[int, int], **options: Any) -> PyramidEncoder:
    torch.manual_seed(0)
    return PyramidEncoder.create(name, image_size=size, options=options).eval()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_timm_give_maps_coarse_to_fine(name: str, size: tuple[int, int]) -> None:
    encoder = make(f"timm:{name}", size, **NETWORKS[name])
    data = images(*size).requires_grad_()
    maps = encoder(data)
    assert encoder.strides == tuple(sorted(encoder.strides, reverse=True))
    assert len(maps) == len(encoder.strides) == len(encoder.channels) > 1
    for part, stride, channels, grid in zip(maps, encoder.strides, encoder.channels, encoder.grids(*size), strict=True):
        assert part.shape == (2, channels, *grid)
        # Odd maps round up in some families and down in others.
        assert all(side // stride <= cells <= -(-side // stride) for cells, side in zip(grid, size, strict=True))
    sum(part.square().mean() for part in maps).backward()
    assert data.grad is not None
    assert data.grad.isfinite().all()
    assert data.grad.any()


def test_odd_maps_round_as_their_family_does() -> None:
    names = ("convnext_atto", "pvt_v2_b0", "mambaout_femto")
    grids = {name: make(f"timm:{name}", (48, 80), **NETWORKS[name]).grids(48, 80)[0] for name in names}
    assert grids["convnext_atto"] == (1, 2)
    assert grids["pvt_v2_b0"] == grids["mambaout_femto"] == (2, 3)


def test_maps_do_not_depend_on_the_layout_inside() -> None:
    encoder: Any = make("timm:mambaout_femto", (32, 32), **NETWORKS["mambaout_femto"])
    data = images(32, 32)
    mean = torch.tensor(encoder.network.pretrained_cfg["mean"])[:, None, None]
    std = torch.tensor(encoder.network.pretrained_cfg["std"])[:, None, None]
    inside = encoder.network(((data + 1) / 2 - mean) / std)
    for ours, theirs in zip(encoder(data), reversed(inside), strict=True):
        torch.testing.assert_close(ours, theirs.permute(0, 3, 1, 2))


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    from safetensors.torch import save_file

    plain = timm.create_model("convnext_atto", pretrained=False, **NETWORKS["convnext_atto"])
    # The head of the published 1,000 classes is left out.
    save_file(plain.state_dict(), tmp_path / "weights.safetensors")
    encoder: Any = PyramidEncoder.create(
        "timm:convnext_atto",
        image_size=(32, 32),
        weights=str(tmp_path / "weights.safetensors"),
        options=NETWORKS["convnext_atto"],
    )
    assert torch.equal(encoder.network.stem_0.weight, plain.stem[0].weight)
    with pytest.raises(FileNotFoundError, match=r"weights file 'none.safetensors' of convnext_atto does not exist"):
        PyramidEncoder.create("timm:convnext_atto", image_size=(32, 32), weights="none.safetensors")


def test_grey_images() -> None:
    encoder = PyramidEncoder.create(
        "timm:convnext_atto", image_size=(32, 32), in_channels=1, options=NETWORKS["convnext_atto"]
    )
    assert encoder(torch.zeros(1, 1, 32, 32))[-1].shape == (1, 8, 8, 8)


@pytest.mark.parametrize(
    ("name", "size", "options", "message"),
    [
        (
            "timm:tnt_s_patch16_224",
            (32, 32),
            {"depth": 3, "embed_dim": 24, "num_heads_outer": 2},
            r"features of the strides \[16, 16, 16\], expected at least two different",
        ),
        (
            "timm:crossvit_9_240",
            (32, 32),
            {"depth": [[1, 1, 0]] * 3, "embed_dim": [16, 32]},
            r"maps of \[\(14, 14\), \(20, 20\)\] for images of any size, expected maps that",
        ),
        (
            "timm:hiera_tiny_224",
            (48, 80),
            {"stages": [1, 1, 1, 1], "embed_dim": 32},
            "'timm:hiera_tiny_224' does not take images of 48 x 80 pixels: shape",
        ),
        ("convnext_atto", (32, 32), {}, "backbone is 'convnext_atto', expected 'timm:' or 'mixer:' and a name"),
        ("mixer:", (32, 32), {}, "backbone is 'mixer:', expected 'timm:' or 'mixer:' and a name"),
        ("mixer:hiena", (32, 32), {}, r"unknown mixer 'hiena'; did you mean hyena\?"),
    ],
)
def test_what_is_no_pyramid_is_refused(name: str, size: tuple[int, int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PyramidEncoder.create(name, image_size=size, options=options)


def test_wrong_options_are_refused() -> None:
    def create(name: str, **options: Any) -> None:
        PyramidEncoder.create(name, image_size=(32, 32), options=options)

    with pytest.raises(ValueError, match=r"'timm:resnet18' does not take the options \{'dept': 3\}: .*dept"):
        create("timm:resnet18", dept=3)
    with pytest.raises(ValueError, match=r"'mixer:none' has no option 'width'; did you mean widths\?"):
        create("mixer:none", width=[8])
    with pytest.raises(ValueError, match=r"widths is \[8\] and depths is \[2, 2, 2\], expected as many of each"):
        create("mixer:none", widths=[8])
    with pytest.raises(ValueError, match="stem is 0, expected at least 1"):
        create("mixer:none", stem=0)
    with pytest.raises(ValueError, match="head_dim is 0, expected at least 1"):
        create("mixer:none", head_dim=0)
    with pytest.raises(ValueError, match="mixer_options is 0, expected at least 1"):
        create("mixer:none", mixer_options=[])
    with pytest.raises(ValueError, match="backbone_weights is None, expected 'random' with 'mixer:none'"):
        PyramidEncoder.create("mixer:none", image_size=(32, 32), weights=None)


@pytest.mark.parametrize("mixer", MIXERS)
def test_stages_of_every_mixer(mixer: str) -> None:
    encoder = make(f"mixer:{mixer}", (29, 18), widths=[16, 32], depths=[1, 2], stem=2, head_dim=16)
    assert (encoder.strides, encoder.channels) == ((4, 2), (32, 16))
    assert encoder.grids(29, 18) == ((8, 5), (15, 9))
    maps = encoder(images(29, 18))
    assert [part.shape for part in maps] == [(2, 32, 8, 5), (2, 16, 15, 9)]
    sum(part.square().mean() for part in maps).backward()
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_blocks_take_options_in_turn_or_share_weights() -> None:
    turns = [{"window": 4}, {"window": 4, "shift": 2}]
    apart: Any = make("mixer:window", (32, 32), widths=[8], depths=[4], mixer_options=turns)
    assert [block.mixer.shift for block in apart.stages[0]] == [0, 2, 0, 2]
    shared: Any = make("mixer:window", (32, 32), widths=[8], depths=[4], mixer_options=turns, shares_blocks=True)
    assert [block.mixer.shift for block in shared.stages[0]] == [0, 2]
    for index, block in enumerate(apart.stages[0]):
        block.load_state_dict(shared.stages[0][index % 2].state_dict())
    for name in ("stem", "stem_norm"):
        getattr(apart, name).load_state_dict(getattr(shared, name).state_dict())
    assert torch.equal(apart(images(32, 32))[0], shared(images(32, 32))[0])


def test_an_odd_image_is_continued_by_its_last_row_and_column() -> None:
    encoder = make("mixer:none", (5, 7), widths=[8], depths=[1], stem=4)
    data = images(5, 7)
    longer = torch.cat([data, data[:, :, -1:].expand(-1, -1, 3, -1)], dim=2)
    assert torch.equal(encoder(data)[0], encoder(torch.cat([longer, longer[:, :, :, -1:]], dim=3))[0])
