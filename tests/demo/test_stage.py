from __future__ import annotations

import base64
import html
import io
import re
import urllib.parse

import pytest
from PIL import Image

from hiergen.demo.clips import Film
from hiergen.demo.requests import read_query
from hiergen.demo.stage import MAX_SCALE, THUMB, View, as_uri, draw_empty, draw_picture, draw_row, draw_stage, result
from hiergen.demo.tabs.generate import GenerateRequest
from hiergen.demo.tabs.shapes import ShapeRequest


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


def animated() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (0, 90 * k, 0)) for k in range(3)]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def test_a_stage_has_a_view_and_a_step_of_the_slider_for_each_level_and_says_what_is_shown() -> None:
    pictures = [Image.new("RGB", (32, 32), (k, 0, 0)) for k in range(4)]
    views = [View(pictures[k : k + 2], f"{k + 1} levels", f"{k} bits", f"a <cat> {k}") for k in range(3)]
    stage = draw_stage(views, line="one & two")
    assert stage.count('class="hg-view"') == 2
    assert stage.count('class="hg-view is-shown"') == stage.count('class="hg-step is-shown"') == 1
    assert 'max="3" value="3" aria-label="From 1 levels to 3 levels"' in stage
    assert (
        re.findall(r'alt="(a [^"]+)"', stage)
        == ["a &lt;cat&gt; 0"] * 2 + ["a &lt;cat&gt; 1"] * 2 + ["a &lt;cat&gt; 2"] * 2
    )
    assert "one &amp; two" in stage
    assert f"--columns:2;--side:{32 * MAX_SCALE}px" in stage
    assert as_uri(pictures[3]) in stage


def test_a_single_view_has_no_slider() -> None:
    stage = draw_stage([View([Image.new("RGB", (8, 8))], "the clip", "3 numbers", "a clip")])
    assert "range" not in stage
    assert "the clip<small>3 numbers</small>" in stage
    assert "<b>" not in draw_empty("<b>")


def test_pictures_are_kept_without_loss_and_animations_as_they_are() -> None:
    noise = Image.effect_noise((20, 10), 80).convert("RGB")
    assert as_uri(noise).startswith("data:image/png;")
    assert decoded(as_uri(noise)).tobytes() == noise.tobytes()
    assert as_uri(animated()).startswith("data:image/webp;")
    assert decoded(as_uri(animated())).n_frames == 3
    assert as_uri(b"GIF89a").startswith("data:image/gif;")


def test_small_pictures_have_hard_pixels_and_large_ones_none() -> None:
    row = draw_row("Rows", [(Image.new("RGB", (32, 32)), "small"), (Image.new("RGB", (200, 200)), "large")])
    assert re.findall(r'class="hg-(pixels|smooth)"', row) == ["pixels", "smooth"]
    clips = [Film((Image.new("RGB", (100, height)),)).encoded(kind) for height in (24, 48) for kind in ("GIF", "WEBP")]
    found = [re.findall(r"hg-(\w+)", draw_picture(clip, "a clip")) for clip in clips]
    assert found == [["pixels"], ["pixels"], ["smooth"], ["smooth"]]
    assert 'alt="Rows: small"' in row
    assert 'class="hg-row is-natural"' in draw_row("Tokens", [], is_natural=True)


def test_an_entry_of_the_strip_is_small_and_its_words_are_no_html() -> None:
    view = View([Image.new("RGB", (300, 200))], "1 level", "9 bits", "wide")
    entry = result([view], title='<img src="x">', line="a line", chosen={"seed": 3})
    assert decoded(entry["thumb"]).size == (THUMB, THUMB * 2 // 3)
    assert entry["title"] == "&lt;img src=&quot;x&quot;&gt;"
    assert entry["chosen"] == {"seed": 3}
    assert "a line" in entry["stage"]
    assert "data-link" not in entry["stage"]


def test_a_result_has_an_address_of_what_it_was_made_with_where_that_is_enough() -> None:
    view = View([Image.new("RGB", (8, 8))], "1 level", "9 bits", "a heart")
    chosen = {"label": 0, "seed": 3, "path": [], "prompt": '"a" & b', "negative_prompt": ""}
    stage = result([view], title="a", line="", chosen=chosen, place=("generate", "By words"))["stage"]
    (query,) = re.findall('data-link="([^"]*)"', stage)
    asked = dict(urllib.parse.parse_qsl(html.unescape(query), strict_parsing=True))
    assert asked == {"tab": "generate", "model": "By words", "label": "0", "seed": "3", "prompt": '"a" & b'}


def test_an_address_is_read_as_a_request_and_what_is_no_number_is_named() -> None:
    asked = {
        "tab": "generate",
        "model": "m",
        "seed": "7",
        "guidance_scale": "2.5",
        "prompt": "red heart",
        "picture": "x",
    }
    assert read_query(GenerateRequest, asked) == GenerateRequest(seed=7, guidance_scale=2.5, prompt="red heart")
    assert read_query(ShapeRequest, {**asked, "label": "2"}) == ShapeRequest(2, None, 2.5, 7)
    with pytest.raises(ValueError, match="seed is 'x' in the address, expected a number"):
        read_query(GenerateRequest, {"seed": "x"})
    with pytest.raises(ValueError, match="count is 99, expected 1 to 8"):
        read_query(GenerateRequest, {"count": "99"})
