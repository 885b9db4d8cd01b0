from __future__ import annotations

import pytest
import torch
from sklearn.decomposition import PCA

import hiergen
from hiergen.tokenizers.videos.patch_components import PatchComponents


def clips() -> torch.Tensor:
    """Clips with structure: smooth in time and space."""
    noise = torch.randn(12, 3, 3, 3, 3)
    return torch.nn.functional.interpolate(noise, size=(4, 8, 8), mode="trilinear", align_corners=True).clamp(-1, 1)


def make(dim: int = 5, patch: tuple[int, int, int] = (2, 4, 4)) -> PatchComponents:
    return PatchComponents(video_size=(4, 8, 8), patch_size=patch, dim=dim).eval()


def test_tokens_are_principal_components() -> None:
    model, data = make(), clips()
    share = model.fit(data)
    boxes = data.unfold(2, 2, 2).unfold(3, 4, 4).unfold(4, 4, 4).permute(0, 2, 3, 4, 1, 5, 6, 7).reshape(12 * 8, -1)
    pca = PCA(5, svd_solver="full").fit(boxes.double().numpy())
    assert share == pytest.approx(pca.explained_variance_ratio_.sum(), rel=1e-5)
    ours = model.encode(data).levels[0].flatten(0, 1)
    wanted = torch.from_numpy(pca.transform(boxes.double().numpy())).float()
    # Each component is known up to its sign.
    torch.testing.assert_close(ours.abs(), wanted.abs(), rtol=1e-3, atol=1e-4)
    error = (model.decode(model.encode(data)) - data).square().mean()
    rest = torch.from_numpy(pca.inverse_transform(wanted.double().numpy())).float() - boxes
    torch.testing.assert_close(error, rest.square().mean(), rtol=1e-3, atol=1e-7)


def test_all_components_keep_everything_and_tokens_lie_where_their_box_is() -> None:
    model, data = make(dim=48, patch=(1, 4, 4)), clips()
    assert model.fit(data) == pytest.approx(1.0)
    (spec,) = model.specs
    assert (spec.num_tokens, spec.grid, spec.dim) == (16, (4, 2, 2), 48)
    torch.testing.assert_close(model.decode(model.encode(data)), data, rtol=0, atol=1e-4)
    changed = data.clone()
    changed[0, :, 3, 4:, :4] += 0.5
    moved = (model.encode(changed).levels[0] - model.encode(data).levels[0]).abs().amax(-1)
    assert moved[0].nonzero().flatten().tolist() == [14]


def test_saved_is_loaded_and_training_leaves_it_alone(tmp_path) -> None:
    model, data = make(), clips()
    model.fit(data)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    loaded = hiergen.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(data).reconstruction, model(data).reconstruction, rtol=1e-4, atol=1e-5)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"patch_size is \(3, 4, 4\), expected divisors of video_size \(4, 8, 8\)"):
        make(patch=(3, 4, 4))
    with pytest.raises(ValueError, match="dim is 97, expected 1 to 96"):
        make(dim=97)
    with pytest.raises(ValueError, match=r"videos have shape \(1, 3, 4, 8, 4\), expected \(b, 3, 4, 8, 8\)"):
        make().encode(torch.zeros(1, 3, 4, 8, 4))
    other = PatchComponents(video_size=(8, 8, 8), patch_size=(2, 4, 4), dim=5)
    with pytest.raises(ValueError, match="they come from another tokenizer"):
        make().decode(other.encode(torch.zeros(1, 3, 8, 8, 8)))


def test_bytes_are_refused(monkeypatch) -> None:
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match=r"videos have dtype torch\.uint8, expected floating point"):
        make().encode(torch.zeros(1, 3, 4, 8, 8, dtype=torch.uint8))
