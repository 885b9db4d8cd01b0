from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

import hiergen
from hiergen.data.images.digits import load_digits
from hiergen.data.images.in_memory import ImageSet
from hiergen.pipelines.encoding import decode_batches, encode_batches, encode_images, tokenizer_fingerprint
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pyramid import specs_to_json
from hiergen.registry import create


@pytest.fixture(scope="module")
def pipe() -> ClassToImagePipeline:
    torch.manual_seed(0)
    tokenizer = create("restok-tiny").eval()
    generator = create("har-tiny", level_specs=specs_to_json(tokenizer.specs), dim=64, depth=1, num_heads=2).eval()
    # The published initialization leaves the output head at zero: every id equally likely.
    torch.nn.init.normal_(generator.head.weight, std=0.2)
    pipeline = ClassToImagePipeline(tokenizer=tokenizer, generator=generator)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_labels_become_pictures_and_a_seed_repeats_them(pipe) -> None:
    first = pipe([3, 7], num_images_per_label=2, guidance_scale=2.0, generator=seeded())
    assert len(first.images) == 4
    assert all(isinstance(image, Image.Image) and image.size == (32, 32) for image in first.images)
    again = pipe([3, 7], num_images_per_label=2, guidance_scale=2.0, generator=seeded())
    assert torch.equal(first.pyramid.concat(), again.pyramid.concat())
    other = pipe([3, 7], num_images_per_label=2, guidance_scale=2.0, generator=seeded(1))
    assert not torch.equal(first.pyramid.concat(), other.pyramid.concat())
    tensor = pipe(3, output_type="pt", generator=seeded()).images
    assert tensor.shape == (1, 3, 32, 32)
    assert float(tensor.abs().max()) <= 1


def test_previews_follow_the_levels_and_end_at_the_result(pipe) -> None:
    seen = []

    def look(pipeline, step, timestep, values):
        assert (pipeline, timestep) == (pipe, step)
        seen.append((step, values["images"]))
        return values

    shown = {"callback_on_step_end": look, "callback_on_step_end_tensor_inputs": ["images"]}
    result = pipe(1, output_type="pt", generator=seeded(), **shown)
    assert [step for step, _ in seen] == list(range(len(seen)))
    assert len(seen) >= len(pipe.tokenizer.specs)
    assert torch.equal(seen[-1][1], result.images)


def test_saved_is_loaded_by_class_and_by_name(pipe, tmp_path) -> None:
    pipe.save_pretrained(tmp_path)
    expected = pipe(5, output_type="pt", generator=seeded()).images
    for loaded in (ClassToImagePipeline.from_pretrained(tmp_path), hiergen.from_pretrained(tmp_path)):
        assert isinstance(loaded, ClassToImagePipeline)
        torch.testing.assert_close(
            loaded(5, output_type="pt", generator=seeded()).images, expected, rtol=1e-4, atol=1e-5
        )
    assert type(hiergen.from_pretrained(tmp_path / "tokenizer")).__name__ == "ResTok"


def test_a_config_never_chooses_code(pipe, tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "os.system"}))
    with pytest.raises(ValueError, match=r"holds a 'os\.system', which hiergen does not load"):
        hiergen.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(ValueError, match="is not a model's config"):
        hiergen.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"neither model_index\.json nor config\.json"):
        hiergen.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="neither a folder nor a repository"):
        hiergen.from_pretrained("nobody/nothing-of-this-name")


def test_bad_requests_are_explained(pipe) -> None:
    with pytest.raises(ValueError, match="class labels span 10 to 10, expected 0 to 9"):
        pipe(10)
    with pytest.raises(ValueError, match="num_images_per_label is 0"):
        pipe(1, num_images_per_label=0)
    with pytest.raises(ValueError, match="class_labels is empty"):
        pipe([])
    with pytest.raises(ValueError, match="output_type is 'jpg'"):
        pipe(1, output_type="jpg")
    with pytest.raises(TypeError, match="no setting 'guidance'; did you mean guidance_scale"):
        pipe(1, guidance=2.0)


def test_a_generator_of_another_tokenizer_is_refused(pipe) -> None:
    other = create("restok-tiny", vocab_size=64)
    with pytest.raises(ValueError, match="this generator was trained for"):
        ClassToImagePipeline(tokenizer=other, generator=pipe.generator)


def test_encoding_does_not_depend_on_the_batch_size_and_is_cached(pipe, tmp_path) -> None:
    test = load_digits("test")
    images = ImageSet(test.images[:10], test.labels[:10], test.classes)
    whole, parts = (encode_batches(pipe.tokenizer, images.images, batch_size=size) for size in (10, 3))
    assert torch.equal(whole.concat(), parts.concat())
    decoded = [decode_batches(pipe.tokenizer, whole, batch_size=size) for size in (10, 3)]
    torch.testing.assert_close(*decoded, atol=1e-5, rtol=0)
    codes = encode_images(pipe.tokenizer, images, tmp_path, flips=True)
    assert codes.levels[-1].shape[:2] == (10, 2)
    assert torch.equal(torch.cat([level[:, 0] for level in codes.levels], 1), whole.concat())
    mirrored = encode_batches(pipe.tokenizer, images.images.flip(-1))
    assert torch.equal(torch.cat([level[:, 1] for level in codes.levels], 1), mirrored.concat())
    torch.manual_seed(1)
    other = create("restok-tiny").eval()
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(pipe.tokenizer)
    with pytest.raises(ValueError, match="is stale"):
        encode_images(other, images, tmp_path, flips=True)


def test_values_out_of_range_are_refused(pipe) -> None:
    for images in (torch.rand(2, 3, 32, 32) * 255, torch.full((2, 3, 32, 32), float("nan"))):
        with pytest.raises(ValueError, match=r"expected values in \[-1, 1\]"):
            encode_batches(pipe.tokenizer, images)
    with pytest.raises(ValueError, match=r"shape \(2, 1, 32, 32\), expected \(b, 3, 32, 32\)"):
        encode_batches(pipe.tokenizer, torch.zeros(2, 1, 32, 32))


def test_damaged_weights_are_named(pipe, tmp_path) -> None:
    pipe.tokenizer.save_pretrained(tmp_path)
    weights = next(tmp_path.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises((ValueError, OSError), match=r"damaged|Unable to load weights"):
        hiergen.from_pretrained(tmp_path)
