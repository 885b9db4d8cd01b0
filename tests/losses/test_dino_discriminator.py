from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hiergen.losses.dino_discriminator import DINO, DinoDiscriminator, LocalBatchNorm, dino_backbone

pytest.importorskip("timm")
TINY = {"img_size": 32, "depth": 4, "embed_dim": 16, "num_heads": 2}


def tiny() -> DinoDiscriminator:
    return DinoDiscriminator(dino_backbone("random", **TINY), kernel_size=3).double()


def double(discriminator: DinoDiscriminator) -> DinoDiscriminator:
    discriminator.backbone.on(torch.device("cpu")).double()
    return discriminator


def test_published_parameters_and_names() -> None:
    with torch.device("meta"):
        model = DinoDiscriminator(dino_backbone("random"))
    assert sum(p.numel() for p in model.parameters()) == 7_386_245
    assert model.taps == (2, 5, 8, 11)
    convolutions = {
        f"heads.{h}.{c}.{n}"
        for h in range(5)
        for c in ("0.0", "1.fn.0", "2")
        for n in ("weight_orig", "bias", "weight_u", "weight_v")
    }
    norms = {f"heads.{h}.{c}.{n}" for h in range(5) for c in ("0.1", "1.fn.1") for n in ("weight", "bias")}
    assert set(model.state_dict()) == convolutions | norms


def test_logits_by_plain_steps_with_gradients() -> None:
    model = double(tiny()).eval()
    images = (torch.rand(3, 3, 32, 32, dtype=torch.float64) * 2 - 1).requires_grad_()
    got = model(images)
    vit = model.backbone.on(images.device)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((images + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    tokens = vit.patch_embed.proj(x).flatten(2).transpose(1, 2)
    tokens = torch.cat([vit.cls_token.expand(3, -1, -1), tokens], dim=1) + vit.pos_embed
    states = [tokens]
    for block in vit.blocks:
        q, k, v = block.attn.qkv(F.layer_norm(tokens, (16,), block.norm1.weight, block.norm1.bias, 1e-6)).chunk(3, -1)
        heads = []
        for part in range(2):
            cut = slice(8 * part, 8 * part + 8)
            heads.append((q[..., cut] @ k[..., cut].transpose(1, 2) / 8**0.5).softmax(-1) @ v[..., cut])
        tokens = tokens + block.attn.proj(torch.cat(heads, -1))
        hidden = block.mlp.fc1(F.layer_norm(tokens, (16,), block.norm2.weight, block.norm2.bias, 1e-6))
        tokens = tokens + block.mlp.fc2(F.gelu(hidden, approximate="tanh"))
        states.append(tokens)
    expected = []
    for head, state in zip(model.heads, states, strict=True):
        x = (state[:, 1:] + state[:, :1]).transpose(1, 2)
        x = plain_block(head[0], x, 0)
        x = (plain_block(head[1].fn, x, 1) + x) / 2**0.5
        expected.append(F.conv1d(x, plain_weight(head[2]), head[2].bias).flatten(1))
    torch.testing.assert_close(got, torch.cat(expected, dim=1), rtol=1e-9, atol=1e-9)
    for parameter in (images, model.heads[2][1].fn[0].weight_orig):
        (ours,) = torch.autograd.grad(got.square().sum(), parameter, retain_graph=True)
        (plain,) = torch.autograd.grad(torch.cat(expected, 1).square().sum(), parameter, retain_graph=True)
        torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-9)
    assert all(not p.requires_grad for p in vit.parameters())


def plain_weight(layer) -> torch.Tensor:
    matrix = layer.weight_orig.flatten(1)
    return layer.weight_orig / (layer.weight_u @ matrix @ layer.weight_v)


def plain_block(block, x: torch.Tensor, reach: int) -> torch.Tensor:
    weight, n = plain_weight(block[0]), x.shape[2]
    x = (
        sum(
            torch.einsum("oi,bin->bon", weight[:, :, k], x[:, :, (torch.arange(n) + k - reach) % n])
            for k in range(2 * reach + 1)
        )
        + block[0].bias[:, None]
    )
    # A batch of three is one group.
    mean, variance = x.mean((0, 2), keepdim=True), x.var((0, 2), keepdim=True, unbiased=False)
    x = (x - mean) / (variance + 1e-6).sqrt() * block[1].weight[:, None] + block[1].bias[:, None]
    return torch.where(x > 0, x, 0.2 * x)


def test_spectral_norm_takes_one_power_step_a_training_pass() -> None:
    model = double(tiny()).train()
    layer = model.heads[0][0][0]
    matrix = layer.weight_orig.detach().flatten(1)
    v = F.normalize(matrix.T @ layer.weight_u, dim=0)
    u = F.normalize(matrix @ v, dim=0)
    model(torch.rand(2, 3, 32, 32, dtype=torch.float64))
    torch.testing.assert_close(layer.weight_u, u)
    model.eval()(torch.rand(2, 3, 32, 32, dtype=torch.float64))
    torch.testing.assert_close(layer.weight_u, u)


def test_local_batch_norm_by_groups() -> None:
    norm = LocalBatchNorm(3, group=2, eps=0.0)
    x = torch.randn(4, 3, 5)
    for start in (0, 2):
        part = norm(x)[start : start + 2]
        torch.testing.assert_close(part.mean((0, 2)), torch.zeros(3), atol=1e-6, rtol=0)
        torch.testing.assert_close(part.var((0, 2), unbiased=False), torch.ones(3))
    torch.testing.assert_close(norm(x)[:2], norm(x[:2]))
    with pytest.raises(ValueError, match="a batch of 3 cannot be cut into 2 equal groups of at most 2"):
        norm(x[:3])


def test_sizes_are_fitted_to_the_backbone() -> None:
    """Below its size bicubic, above it a crop or an area resize, chosen and placed by the rng."""
    model = tiny()
    small, large = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 40, 36)
    assert torch.equal(model._fit(small, None), F.interpolate(small, size=(32, 32), mode="bicubic"))
    area, seen = F.interpolate(large, size=(32, 32), mode="area"), set()
    for seed in range(12):
        got = model._fit(large, torch.Generator().manual_seed(seed))
        crops = [(i, j) for i in range(9) for j in range(5) if torch.equal(got, large[:, :, i : i + 32, j : j + 32])]
        assert crops or torch.equal(got, area)
        seen.add(crops[0] if crops else "area")
    assert "area" in seen
    assert len(seen) > 3


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=rf"weights file 'nowhere.pth' of {DINO} does not exist"):
        dino_backbone("nowhere.pth")
