from __future__ import annotations

import html
import io
import re
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hiergen.data.images.pixels import to_pictures
from hiergen.demo.library import DemoModel, ModelNotes
from hiergen.demo.painting import SIDE, background, painted
from hiergen.demo.pictures import digit_examples
from hiergen.demo.requests import read_query
from hiergen.demo.stage import as_uri
from hiergen.demo.tabs.edit import _updates
from hiergen.demo.tabs.editing import EditRequest, edit, edited, make_ready, num_levels, ways
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pyramid import specs_to_json
from hiergen.registry import create


@pytest.fixture(scope="module")
def flow() -> DemoModel:
    torch.manual_seed(0)
    tokenizer = create("hieratok-tiny").eval()
    generator = create("flow-tiny", depth=1, level_specs=specs_to_json(tokenizer.specs)).eval()
    for linear in (generator.blocks[0].modulation, generator.final_modulation, generator.final_linear):
        torch.nn.init.normal_(linear.weight, std=0.2)
    pipe = ClassToImagePipeline(tokenizer=tokenizer, generator=generator)
    pipe.set_progress_bar_config(disable=True)
    return DemoModel(pipe, ModelNotes(sampling={"num_steps": 4}))


def mask() -> np.ndarray:
    found = np.zeros((512, 512), bool)
    found[128:384, 128:384] = True
    return found


def test_what_is_painted_over_is_made_anew_step_by_step(flow) -> None:
    image = digit_examples(32)[0][3:4]
    request = EditRequest(label=5, seed=3)
    *steps, last = edit(flow, request, image, mask=mask(), seconds=60.0)
    assert [(now.step, now.steps) for now in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    (view,) = last.views
    expected = flow.model.edit(
        image, mask(), 5, strength=1.0, generator=torch.Generator().manual_seed(3), num_steps=4, guidance_scale=1.5
    ).images
    assert view.pictures[1] == expected[0]
    before, given = np.asarray(view.pictures[0]), np.asarray(to_pictures(image)[0])
    # Where was painted is blue, and nowhere else.
    is_blue = (before[..., 2] > before[..., 0]).reshape(32, 32)
    assert np.array_equal(is_blue, mask()[::16, ::16])
    assert np.array_equal(before[~is_blue], given[~is_blue])
    assert "what was painted over is made anew, seed 3" in view.alt[1]
    assert ways(flow) == [("Make anew what I paint over", "paint")]
    assert num_levels(flow) == 0


def test_what_is_painted_over_is_made_of_words(library) -> None:
    entry, image = library.get("words"), digit_examples(32)[0][3:4]
    request = EditRequest(seed=3, guidance_scale=2.0, prompt="red heart", negative_prompt="hat")
    *_, last = edit(entry, request, image, mask=mask(), seconds=60.0)
    (view,) = last.views
    draws = {"generator": torch.Generator().manual_seed(3), "num_steps": 3, "guidance_scale": 2.0}
    expected = entry.model.edit(image, mask(), "red heart", negative_prompt="hat", strength=1.0, **draws).images
    assert view.pictures[1] == expected[0]
    assert view.alt[1] == "The picture after: red heart, what was painted over is made anew, seed 3"
    with pytest.raises(ValueError, match="the field for the words is empty"):
        list(edit(entry, EditRequest(), image, mask=mask(), seconds=60.0))


def test_levels_are_kept_and_blended(library) -> None:
    entry = library.get("one-dimensional")
    assert num_levels(entry) == 5
    assert [way for _, way in ways(entry)] == ["paint", "vary", "blend"]
    image, other = digit_examples(32)[0][3:4], digit_examples(32)[0][7:8]
    *_, last = edit(entry, EditRequest("vary", 3, keep_levels=5), image, seconds=60.0)
    rebuilt = to_pictures(entry.model._decode(entry.tokenizer.encode(image)))
    assert last.views[0].pictures[1] == rebuilt[0]
    assert "5 levels of 5 kept" in last.views[0].alt[1]
    (blends,) = edit(entry, EditRequest("blend"), image, other=other, seconds=60.0)
    assert [view.name for view in blends.views] == [f"{count} of 5" for count in range(6)]
    assert blends.views[-1].pictures[-1] == rebuilt[0]
    assert blends.views[2].pictures[-1] == entry.model.blend(image, other, keep_levels=2).images[0]
    # Painting: of levels without places the slider's number is kept, and the pixels outside of the mask.
    *_, last = edit(entry, EditRequest("paint", 3, keep_levels=2), image, mask=mask(), seconds=60.0)
    after = np.asarray(last.views[0].pictures[1])
    assert np.array_equal(after[:5], np.asarray(to_pictures(image)[0])[:5])


def test_the_page_gets_a_stage_and_an_entry_for_the_strip(library) -> None:
    pytest.importorskip("gradio")
    entry, image = library.get("one-dimensional"), digit_examples(32)[0][3:4]
    request = EditRequest("blend", 4, keep_levels=2)
    steps = edit(entry, request, image, other=-image, seconds=60.0)
    (stage, status, made), *rest = _updates(entry, request, steps, is_whole=False)
    assert (rest, status) == ([], "Done.")
    assert stage == made["stage"]
    assert stage.count("<figure>") == 3 * 6
    assert made["title"] == "blend"
    assert made["chosen"]["path"] == [4]
    request = EditRequest("paint", 4, keep_levels=2)
    steps = edit(entry, request, image, mask=mask(), seconds=60.0)
    *_, (stage, status, made) = _updates(entry, request, steps, is_whole=False)
    assert (status, made["title"]) == ("Done.", "4")
    assert "before" in stage


def test_a_result_of_an_example_without_paint_has_an_address_that_says_it_all(library) -> None:
    entry = library.get("words")
    chosen = {"strength": 0.5, "keep_levels": 0, "guidance_scale": 2.0, "seed": 9, "prompt": "a & b"}
    request = EditRequest("paint", **chosen, example=4, other=2)
    *_, last = edit(entry, request, digit_examples(32)[0][4:5], seconds=60.0)
    stage = edited(entry, request, last.views, is_whole=True)["stage"]
    (query,) = re.findall('data-link="([^"]*)"', stage)
    asked = dict(urllib.parse.parse_qsl(html.unescape(query), keep_blank_values=True))
    assert (asked["tab"], asked["model"]) == ("edit", entry.title)
    assert read_query(EditRequest, asked) == request
    # What was painted, and an upload, are in no address.
    assert "data-link" not in edited(entry, request, last.views)["stage"]
    assert "data-link" not in make_ready(entry, seconds=60.0, limit=60.0)[0]["stage"]


def test_the_tab_opens_with_finished_edits(library) -> None:
    entry = library.get("words")
    ready = make_ready(entry, seconds=60.0, limit=60.0)
    assert [made["title"] for made in ready] == ["red heart", "blue &lt;cat&gt; &amp; dog"] * 2
    middle = np.hypot(*np.mgrid[-1:1:64j, -1:1:64j]) ** 2 < 0.3
    draws = {"generator": torch.Generator().manual_seed(0), "num_steps": 3, "guidance_scale": 2.0}
    (expected,) = entry.model.edit(digit_examples(32)[0][:1], middle, "red heart", strength=1.0, **draws).images
    assert as_uri(expected) in ready[0]["stage"]
    assert make_ready(entry, seconds=0.0, limit=60.0) == []


def test_a_picture_that_is_there_is_not_written_again(tmp_path, monkeypatch) -> None:
    """Another visitor may be fetching it."""
    pytest.importorskip("gradio")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    picture = digit_examples(32)[1][0]
    found = Path(background(picture)["background"])
    with Image.open(found) as stored:
        assert stored.size == (SIDE, SIDE)
    found.write_bytes(b"as it is")
    assert background(picture)["background"] == str(found)
    assert found.read_bytes() == b"as it is"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [found.name]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"way": "erase"}, "way is 'erase', expected 'paint', 'vary', 'blend'"),
        ({"strength": 2.0}, "strength is 2.0, expected 0 to 1"),
        ({"keep_levels": -1}, "keep_levels is -1, expected 0 to 100"),
    ],
)
def test_a_bad_request_is_named(values, said) -> None:
    with pytest.raises(ValueError, match=said):
        EditRequest(**values)


def layer(alpha: np.ndarray) -> bytes:
    rgba = np.zeros((*alpha.shape, 4), np.uint8)
    rgba[..., 3] = alpha
    Image.fromarray(rgba).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def test_paint_is_read_from_the_layers() -> None:
    first, second = (np.zeros((8, 8), np.uint8) for _ in range(2))
    first[2, 3], second[5] = 150, 1
    found = painted([layer(first), layer(second)])
    assert np.array_equal(found, (first + second) > 0)
    assert painted([]) is None
    assert painted([layer(np.zeros((8, 8), np.uint8))]) is None
    with pytest.raises(ValueError, match=r"layers of shape \(8, 8\) and \(4, 4\)"):
        painted([layer(first), layer(np.ones((4, 4), np.uint8))])
    with pytest.raises(ValueError, match="at most 1,048,576 are read"):
        painted([layer(np.zeros((1025, 1024), np.uint8))])
    shown = background(Image.new("RGB", (32, 32), "red"))
    assert shown["background"] == shown["composite"]
    assert shown["layers"] == []


def test_the_painter_keeps_few_small_layers() -> None:
    pytest.importorskip("gradio")
    from gradio.components.image_editor import AcceptBlobs, EditorData

    from hiergen.demo.painting import MAX_PAINTINGS, add_painter

    painter = add_painter(Image.new("RGB", (32, 32)), name="p", max_bytes=1000)
    mark = np.zeros((8, 8), np.uint8)
    mark[1, 2] = 200

    def send(painting: str, kind: str, index: object, content: bytes) -> None:
        data = {"type": kind, "index": index, "id": painting, "file": b""}
        painter.accept_blobs(AcceptBlobs(data=data, files=[("file", content)]))

    send("a", "layer", "0", layer(mark))
    send("a", "layer", "99999999", layer(mark))
    send("a", "layer", "1", bytes(1001))
    send("a", "composite", None, layer(mark))
    assert [part is not None for part in painter.blob_storage["a"].layers] == [True, False, False, False]
    assert painter.blob_storage["a"].composite is None
    assert np.array_equal(painter.preprocess(EditorData(id="a")), mark > 0)
    assert "a" not in painter.blob_storage
    assert painter.preprocess(EditorData(id="a")) is None
    for number in range(MAX_PAINTINGS + 5):
        send(str(number), "layer", 0, layer(mark))
    assert len(painter.blob_storage) == MAX_PAINTINGS
    assert "0" not in painter.blob_storage
