"""Pyramids and outputs are trees of tensors: `torch.export` takes tokenizers, and saves what it made."""

from __future__ import annotations

import io
from typing import Any

import jaxtyping
import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.registry import create
from hiergen.tokenizers.base import TokenizerOutput

_VIT = {
    f"{part}_{name}": size
    for part in ("encoder", "decoder")
    for name, size in (("dim", 32), ("depth", 1), ("heads", 2))
}
#: Small tokenizers of one level and of several, of images and of clips, with the shape of what they encode.
MODELS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "hieratok-tiny-levels": (
        {**_VIT, "image_size": 16, "patch_size": 8, "scales": [1, 2], "has_preview_heads": False},
        (3, 16, 16),
    ),
    "patches-tiny": ({"video_size": [4, 12, 12], "dim": 4}, (3, 4, 12, 12)),
}


class Encode(nn.Module):
    def __init__(self, tokenizer: nn.Module) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, data: Tensor) -> TokenPyramid:
        return self.tokenizer.encode(data)


class Decode(Encode):
    def forward(self, pyramid: TokenPyramid) -> Tensor:
        return self.tokenizer.decode(pyramid)


def exported(module: nn.Module, example: Any) -> nn.Module:
    """Return a module exported for any batch, saved and read again."""
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = {0: batch} if isinstance(example, Tensor) else [{0: batch} for _ in example.levels]
    program = torch.export.export(module, (example,), dynamic_shapes=(shapes,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


@pytest.mark.parametrize("name", MODELS)
def test_encoding_decoding_and_the_module_itself_are_exported_for_any_batch(name, monkeypatch) -> None:
    # The run-time check of annotations is no part of a graph.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    torch.manual_seed(0)
    options, shape = MODELS[name]
    tokenizer = create(name, **options).eval()
    two, three = (torch.rand(count, *shape) * 2 - 1 for count in (2, 3))
    with torch.no_grad():
        encode, decode = exported(Encode(tokenizer), two), exported(Decode(tokenizer), tokenizer.encode(two))
        pyramid = encode(three)
        assert isinstance(pyramid, TokenPyramid)
        assert pyramid.specs == tokenizer.specs
        torch.testing.assert_close(pyramid.concat(), tokenizer.encode(three).concat())
        torch.testing.assert_close(decode(pyramid), tokenizer.decode(pyramid), rtol=1e-4, atol=1e-5)
        output = exported(tokenizer, two)(three)
        assert isinstance(output, TokenizerOutput)
        expected = tokenizer(three)
    torch.testing.assert_close(output.reconstruction, expected.reconstruction, rtol=1e-4, atol=1e-5)
    assert output.losses.keys() == expected.losses.keys()


def test_a_pyramid_is_a_tree_of_its_levels() -> None:
    specs = (LevelSpec(1, None, 2), LevelSpec(4, (2, 2), 2))
    pyramid = TokenPyramid((torch.zeros(3, 1, 2), torch.ones(3, 4, 2)), specs)
    leaves, tree = pytree.tree_flatten(pyramid)
    assert [leaf.shape for leaf in leaves] == [(3, 1, 2), (3, 4, 2)]
    assert pytree.tree_unflatten(leaves, tree).specs == specs
    shapes = pytree.tree_map(lambda level: level.shape[1], pyramid)
    assert shapes.levels == (1, 4)
    named = {pytree.keystr(path): leaf for path, leaf in pytree.tree_flatten_with_path(pyramid)[0]}
    assert list(named) == ["[0]", "[1]"]
    back = pytree.treespec_loads(pytree.treespec_dumps(tree))
    assert pytree.tree_unflatten(leaves, back).specs == specs
