from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hiergen.pretrained.perceptual import _STAGES, LPIPS, ConvNeXtLogits
from hiergen.pretrained.weights import find_weights, read_state_dict

DATA = Path(os.environ.get("HIERGEN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def fake_weights(model: LPIPS) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    backbone = {f"features.{name}": value for name, value in model.features.state_dict().items()}
    heads = {f"lin{i}.model.1.weight": torch.rand(1, len(head), 1, 1) for i, head in enumerate(model.heads)}
    return backbone, heads


@pytest.mark.skipif(not (DATA / "lpips").is_dir(), reason="the published LPIPS weights are not here (HIERGEN_DATA)")
def test_published_values_of_alexnet() -> None:
    """The values that the authors document for their example images: 0.722 and 0.138."""
    distance = LPIPS.from_files("alex", folder=DATA / "lpips")
    reference, *others = (
        torch.from_numpy(np.asarray(Image.open(DATA / "lpips" / f"ex_{name}.png").convert("RGB")).copy())
        .permute(2, 0, 1)[None]
        .float()
        / 127.5
        - 1
        for name in ("ref", "p0", "p1")
    )
    values = [float(distance(reference, other)) for other in others]
    assert values == pytest.approx([0.7219, 0.1376], abs=6e-5)


@pytest.mark.skipif(not (DATA / "lpips").is_dir(), reason="the published LPIPS weights are not here (HIERGEN_DATA)")
def test_squeezenet_agrees_with_the_lpips_package() -> None:
    lpips = pytest.importorskip("lpips")
    # That package builds its backbone through a deprecated argument of torchvision.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = lpips.LPIPS(net="squeeze", pretrained=False, pnet_rand=True, verbose=False)
    heads = torch.load(DATA / "lpips" / "lin_squeeze.pth", map_location="cpu", weights_only=True)
    other.load_state_dict(heads, strict=False)
    features = read_state_dict(DATA / "lpips" / "squeeze_features.safetensors")
    for name, parameter in other.net.named_parameters():
        parameter.data.copy_(features["features." + name.split(".", 1)[1]])
    images = torch.rand(2, 2, 3, 40, 40) * 2 - 1
    ours = LPIPS.from_files("squeeze", folder=DATA / "lpips")(images[0], images[1])
    torch.testing.assert_close(ours, other.eval()(images[0], images[1]).flatten(), rtol=1e-5, atol=1e-6)


def test_lpips_by_hand_with_gradients_even_where_features_vanish() -> None:
    distance = LPIPS("alex").double()
    distance.load(*fake_weights(distance))
    first = (torch.rand(2, 3, 35, 35, dtype=torch.float64) * 2 - 1).requires_grad_()
    second = torch.rand(2, 3, 35, 35, dtype=torch.float64) * 2 - 1
    got = distance(first, second)
    expected = torch.zeros(2, dtype=torch.float64)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, y = ((z - shift[:, None, None]) / scale[:, None, None] for z in (first, second))
    stage = 0
    for index, layer in enumerate(distance.features):
        x, y = layer(x), layer(y)
        if index in (1, 4, 7, 9, 11):
            u, v = (z / (z.square().sum(1, keepdim=True).sqrt() + 1e-10) for z in (x, y))
            expected = expected + torch.einsum("bchw,c->bhw", (u - v) ** 2, distance.heads[stage].double()).mean((1, 2))
            stage += 1
    assert stage == 5
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
    (ours,) = torch.autograd.grad(got.sum(), first, retain_graph=True)
    (plain,) = torch.autograd.grad(expected.sum(), first)
    torch.testing.assert_close(ours, plain.nan_to_num(), rtol=1e-5, atol=1e-8)
    for layer in distance.features:
        if isinstance(layer, nn.Conv2d):
            layer.bias.data.fill_(-100.0)
    (gradient,) = torch.autograd.grad(distance(first, second).sum(), first)
    assert torch.isfinite(gradient).all()


def test_the_stages_of_vgg_are_its_last_relus_before_pooling() -> None:
    """Read off torchvision's definition on the meta device: VGG16 itself is too large for a test."""
    with torch.device("meta"):
        import torchvision

        layers = list(torchvision.models.vgg16(weights=None).features)
    taps, channels = _STAGES["vgg"]
    pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    assert taps == tuple(i - 1 for i in pools)
    assert channels == tuple(layers[i - 2].out_channels for i in pools)


def test_missing_and_foreign_files_are_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    with pytest.raises(
        FileNotFoundError, match=r"backbone are missing: put vgg_features.safetensors or vgg16.*into '.*mine'"
    ):
        LPIPS.from_files("vgg", folder=tmp_path / "mine")
    with pytest.raises(FileNotFoundError, match=r"ConvNeXt-S are missing: put convnext_small-0c510722.pth into"):
        ConvNeXtLogits.from_files()
    with pytest.raises(FileNotFoundError, match=r"'nowhere\.pth' does not exist"):
        read_state_dict("nowhere.pth")
    torch.save({"epoch": 3}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="holds no flat table of tensors"):
        read_state_dict(tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="network is 'resnet', expected one of vgg, alex, squeeze"):
        LPIPS("resnet")
    model = LPIPS("squeeze")
    backbone, heads = fake_weights(model)
    with pytest.raises(ValueError, match=r"lack lin6\.model\.1\.weight"):
        model.load(backbone, {k: v for k, v in heads.items() if "6" not in k})
    with pytest.raises(ValueError, match="do not fit LPIPS squeeze"):
        model.load({**backbone, "features.0.bias": torch.zeros(3)}, heads)
    torch.save(backbone, tmp_path / "squeezenet1_1-b8a52dc0.pth")
    torch.save(heads, tmp_path / "lin_squeeze.pth")
    loaded = LPIPS.from_files("squeeze", folder=tmp_path)
    assert torch.equal(loaded.heads[2], heads["lin2.model.1.weight"].flatten())
    assert find_weights("x", ["lin_squeeze.pth"], [tmp_path]) == tmp_path / "lin_squeeze.pth"


def test_the_distance_of_logits_by_hand() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[2:] == (224, 224)
            return self.linear(x.mean((2, 3)))

    logits = ConvNeXtLogits(Small())
    # The mean color survives any resize of a constant image.
    flat = [torch.full((1, 3, 8, 8), value) for value in (-0.5, 0.5)]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    u, v = (logits.model.linear(((x[0, :, 0, 0] + 1) / 2 - mean) / std) for x in flat)
    torch.testing.assert_close(logits(*flat), (u - v).square().mean()[None])
