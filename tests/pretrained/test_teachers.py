from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F

from hiergen.pretrained.teachers import TEACHERS, PatchTeacher, Teacher

pytest.importorskip("timm")
TINY = {"depth": 1, "embed_dim": 24, "num_heads": 2}


@pytest.mark.parametrize("name", ["dinov3", "dinov2", "siglip2", "mae"])
def test_summary_and_patches_of_normalized_images(name: str) -> None:
    preset = TEACHERS[name]
    patch = preset.image_size // 16
    teacher = Teacher(name, "random", image_size=2 * patch, **TINY)
    images = torch.rand(2, 3, 20, 20) * 2 - 1
    summary, patches = teacher(images)
    assert summary.shape == (2, 24)
    assert patches.shape == (2, 4, 24)
    mean, std = (torch.tensor(x)[:, None, None] for x in (preset.mean, preset.std))
    resized = F.interpolate(images, size=(2 * patch, 2 * patch), mode="bicubic")
    tokens = teacher.model.forward_features(((resized + 1) / 2 - mean) / std)
    torch.testing.assert_close(patches, tokens[:, -4:])
    torch.testing.assert_close(summary, tokens.mean(1) if name == "siglip2" else tokens[:, 0])
    assert not any(p.requires_grad for p in teacher.parameters())


def test_every_published_teacher_is_known_to_timm_and_gives_a_16_by_16_map() -> None:
    import timm

    for preset in TEACHERS.values():
        with torch.device("meta"):
            model = timm.create_model(preset.model, pretrained=False, img_size=preset.image_size, depth=1)
        assert model.patch_embed.grid_size == (16, 16)


def test_refusals(monkeypatch) -> None:
    with pytest.raises(
        ValueError, match="teacher is 'dino', expected one of dinov3, dinov2, dinov2_b, clip, siglip2, mae"
    ):
        Teacher("dino")
    with pytest.raises(FileNotFoundError, match=r"'gone\.pth' of vit_large_patch16_224\.mae does not exist"):
        Teacher("mae", "gone.pth")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r'needs timm: pip install "hiergen\[images\]"'):
        Teacher("mae")


def test_a_patch_teacher_is_frozen_and_drops_its_class_token() -> None:
    options = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    teacher = PatchTeacher("vit_tiny_patch16_224", "random", image_size=64, **options)
    assert teacher.dim == 32
    assert not teacher.train().model.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    features = teacher(images)
    assert features.shape == (2, 16, 32)
    assert torch.equal(features, teacher.model.forward_features(images)[:, 1:])
    assert teacher(torch.rand(1, 3, 32, 32)).shape == (1, 16, 32)


def test_missing_timm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r'pip install "hiergen\[images\]"'):
        PatchTeacher()
