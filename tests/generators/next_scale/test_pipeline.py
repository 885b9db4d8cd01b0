"""VAR from a label to a picture, through the pipeline of every image generator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import hiergen
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pipelines.prefixes import list_prefixes
from hiergen.pyramid import specs_to_json
from hiergen.registry import create


@pytest.fixture(scope="module")
def pipe() -> ClassToImagePipeline:
    torch.manual_seed(0)
    tokenizer = create("multiscale-vq-tiny", widths=[32, 32, 32]).eval()
    torch.nn.init.normal_(tokenizer.quantizer.codebook)
    sizes = {"dim": 32, "depth": 2, "num_heads": 2, "num_classes": 300, "gate_init": 1.0}
    generator = create("var-tiny", level_specs=specs_to_json(tokenizer.specs), **sizes).eval()
    torch.nn.init.normal_(generator.head.weight, std=0.2)
    generator.take_quantizer(tokenizer.quantizer)
    pipeline = ClassToImagePipeline(tokenizer=tokenizer, generator=generator)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipe: ClassToImagePipeline, **settings: object) -> torch.Tensor:
    return pipe(207, output_type="pt", generator=torch.Generator().manual_seed(4), **settings).images


@pytest.mark.parametrize("settings", [{"guidance_scale": 2.5, "top_k": 90, "top_p": 0.96}, {"smooth": True}], ids=str)
def test_saved_is_loaded_and_draws_the_same(
    pipe: ClassToImagePipeline, settings: dict[str, object], tmp_path: Path
) -> None:
    image = draw(pipe, **settings)
    assert image.shape == (1, 3, 32, 32)
    pipe.save_pretrained(tmp_path)
    loaded = hiergen.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    # The weights lie elsewhere, so sums are rounded otherwise, which smooth sampling sharpens.
    torch.testing.assert_close(draw(loaded, **settings), image, rtol=0, atol=1e-3)
    low = draw(hiergen.from_pretrained(tmp_path, dtype=torch.bfloat16), **settings)
    assert low.dtype == torch.bfloat16
    assert bool(low.isfinite().all())


@pytest.mark.parametrize("settings", [{}, {"smooth": True}], ids=str)
def test_previews_are_the_images_of_prefixes(pipe: ClassToImagePipeline, settings: dict[str, object]) -> None:
    seen: list[torch.Tensor] = []
    image = draw(
        pipe,
        callback_on_step_end=lambda _, step, time, values: seen.append(values["images"]),
        callback_on_step_end_tensor_inputs=["images"],
        **settings,
    )
    assert len(seen) == 6
    assert torch.equal(seen[-1], image)
    stopped = draw(pipe, num_levels=3, **settings)
    torch.testing.assert_close(stopped, seen[2])
    assert not torch.equal(stopped, image)


def test_prefixes_are_counted_in_levels(pipe: ClassToImagePipeline) -> None:
    assert [prefix.tokens for prefix in list_prefixes(pipe.tokenizer)] == [1, 5, 14, 30, 66, 130]
    assert list_prefixes(pipe.tokenizer)[0].bits == 9
