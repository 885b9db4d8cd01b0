"""`TextToImagePipeline`: prompts, negative prompts and encoders, and `hiergen generate --prompt`."""

from __future__ import annotations

import pytest
import torch
from hub_server import write_t5
from PIL import Image

import hiergen
from hiergen.cli import generate
from hiergen.generators.conditioning import TextCondition, read_words
from hiergen.pipelines.image import ClassToImagePipeline, TextToImagePipeline
from hiergen.pipelines.mixins.scoring import COMPARED_AT
from hiergen.pretrained.text_encoder import TextEncoder
from hiergen.pyramid import specs_to_json
from hiergen.registry import create

SIZES = {"image_size": 16, "encoder_dim": 16, "encoder_depth": 1, "encoder_heads": 2}
SIZES |= {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "tail_depth": 0, "scales": [1, 2], "latent_dim": 4}


def make(encoder: dict[str, object] | None, channels: int = 8) -> TextToImagePipeline:
    torch.manual_seed(0)
    tokenizer = create("hieratok-tiny", **SIZES).eval()
    sizes = {"dim": 16, "depth": 1, "num_heads": 2, "num_classes": None, "text_shape": [4, channels]}
    generator = create("flow-tiny", level_specs=specs_to_json(tokenizer.specs), text_encoder=encoder, **sizes).eval()
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    pipe = TextToImagePipeline(tokenizer=tokenizer, generator=generator)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> TextToImagePipeline:
    return make({"name": "bytes", "num_pieces": 64, "depth": 1, "num_heads": 2})


def drawn(pipe: TextToImagePipeline, *prompts: object, **options: object) -> torch.Tensor:
    rngs = [torch.Generator().manual_seed(k) for k in range(options.pop("count", 2))]
    return pipe(*prompts, generator=rngs, num_steps=2, output_type="pt", **options).images


def test_prompts_become_pictures(pipe) -> None:
    made = drawn(pipe, "a cat", num_images_per_prompt=2)
    assert made.shape == (2, 3, 16, 16)
    assert torch.equal(made, drawn(pipe, ["a cat", "a cat"]))
    assert torch.equal(made, drawn(pipe, read_words(["a cat", "a cat"], 4)))
    assert not torch.equal(made, drawn(pipe, ["a cat", "a dog"]))
    assert isinstance(pipe("a cat", num_steps=2).images[0], Image.Image)
    assert len(pipe(num_images=2, num_images_per_prompt=2, num_steps=2).images) == 4


def test_the_best_of_several_is_the_one_whose_error_its_text_lowers_most(pipe) -> None:
    shared = [torch.Generator().manual_seed(5)] * 4
    options = {"num_steps": 2, "output_type": "pt", "guidance_scale": 3.0, "negative_prompt": "a hat"}
    drawn = pipe("a cat", num_images_per_prompt=4, generator=shared, **options)
    with_text, without = (pipe.velocity_errors(drawn.pyramid, told, times=COMPARED_AT) for told in ("a cat", None))
    gains = without - with_text
    assert gains.argmax() != 0
    best = pipe("a cat", generator=[torch.Generator().manual_seed(5)], best_of=4, **options).images
    torch.testing.assert_close(best[0], drawn.images[gains.argmax()])
    with pytest.raises(ValueError, match="best_of is 2 without prompt, by which candidates are compared: expected 1"):
        pipe(num_images=1, best_of=2)


def test_negative_prompts(pipe) -> None:
    guided = drawn(pipe, ["a cat", "a dog"], guidance_scale=3.0)
    one = drawn(pipe, ["a cat", "a dog"], negative_prompt="a hat", guidance_scale=3.0)
    assert not torch.equal(one, guided)
    assert torch.equal(one, drawn(pipe, ["a cat", "a dog"], ["a hat", "a hat"], guidance_scale=3.0))
    assert torch.equal(drawn(pipe, "a cat", "a hat", count=1), drawn(pipe, "a cat", count=1))


def test_a_pipeline_is_saved_and_loaded_with_its_card(pipe, tmp_path) -> None:
    pipe.save_pretrained(tmp_path)
    loaded = hiergen.from_pretrained(tmp_path)
    assert isinstance(loaded, TextToImagePipeline)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(drawn(loaded, "a cat", count=1), drawn(pipe, "a cat", count=1))
    assert 'images = pipe("TEXT", num_images_per_prompt=4).images' in (tmp_path / "README.md").read_text()


def test_the_network_that_the_generator_names_is_loaded_with_the_first_text(tmp_path) -> None:
    write_t5(tmp_path)
    pipe = make({"name": str(tmp_path)}, 16)
    made = drawn(pipe, "a cat", count=1)
    assert isinstance(pipe.text_encoder, TextEncoder)
    assert torch.equal(made, drawn(pipe, TextCondition(*pipe.text_encoder(["a cat"])), count=1))
    unnamed = make(None, 16)
    with pytest.raises(ValueError, match="the config of this FlowTransformer names no encoder of texts: set pipe"):
        unnamed("a cat")
    unnamed.text_encoder = pipe.text_encoder
    assert torch.equal(drawn(unnamed, "a cat", count=1), made)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (([],), {}, "prompt is empty, expected at least one text"),
        ((["a", 3],), {}, "prompt holds 3 of type int, expected texts"),
        ((["a", "b", "c"], ["d", "e"]), {}, "negative_prompt holds 2 texts, expected 1 or 3, one per prompt"),
        ((None, "a"), {}, "negative_prompt is 'a' beside no prompt, expected a prompt too"),
        (("a",), {"num_images": 2}, "num_images is 2 beside a prompt, expected num_images_per_prompt"),
        (("a",), {"num_images_per_prompt": 0}, "num_images_per_prompt is 0, expected at least 1"),
    ],
)
def test_refusals(pipe, prompts, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(*prompts, **options)


def test_a_generator_of_classes_takes_no_texts(pipe) -> None:
    generator = create("flow-tiny", level_specs=specs_to_json(pipe.tokenizer.specs), dim=16, depth=1, num_heads=2)
    with pytest.raises(
        ValueError, match="the FlowTransformer was trained on classes, expected one of texts: use ClassTo"
    ):
        TextToImagePipeline(tokenizer=pipe.tokenizer, generator=generator)


def test_the_command_line_takes_prompts(pipe, tmp_path, capsys) -> None:
    pipe.save_pretrained(tmp_path / "pipe")
    words = ["--pipeline", str(tmp_path / "pipe"), "--count", "1", "--num-steps", "2", "--out", str(tmp_path / "out")]
    generate.main([*words, "--prompt", "red cat, big", "a dog", "--negative-prompt", "hat", "--best-of", "2"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a-dog-000.png",
        "grid.png",
        "red-cat-big-000.png",
    ]
    assert "2 images and grid.png" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is of class TextToImagePipeline, which takes texts, give --prompt TEXT"):
        generate.main(words)
    ClassToImagePipeline(
        tokenizer=pipe.tokenizer,
        generator=create("flow-tiny", level_specs=specs_to_json(pipe.tokenizer.specs), dim=16, depth=1, num_heads=2),
    ).save_pretrained(tmp_path / "classes")
    with pytest.raises(ValueError, match="ClassToImagePipeline, which takes no texts: leave --prompt out"):
        generate.main(["--pipeline", str(tmp_path / "classes"), "--prompt", "a"])
