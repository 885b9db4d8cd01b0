from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from hiergen.__main__ import main
from hiergen.data.videos.decoding import read_frames
from hiergen.data.videos.files import write_mp4
from hiergen.generators.flow.model import FlowTransformer
from hiergen.pipelines.video import ClassToVideoPipeline
from hiergen.pyramid import specs_to_json
from hiergen.registry import create
from hiergen.tokenizers.videos.patch_components import PatchComponents


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("videos")
    for name, frames in (("a/1.mp4", 9), ("b/2.mp4", 4)):
        (out / "clips" / name).parent.mkdir(parents=True)
        write_mp4(out / "clips" / name, torch.rand(3, frames, 16, 16) * 2 - 1)
    (out / "clips" / "broken.mkv").write_text("nothing")
    tokenizer = PatchComponents(video_size=(4, 16, 16), patch_size=(2, 8, 8), dim=3)
    tokenizer.save_pretrained(out / "patches")
    generator = FlowTransformer(level_specs=specs_to_json(tokenizer.specs), num_classes=2, dim=16, depth=1, num_heads=1)
    generator.register_to_config(id2label={"0": "cars/sports cars", "1": "No. 1"})
    ClassToVideoPipeline(tokenizer=tokenizer, generator=generator).save_pretrained(out / "pipeline")
    return out


def test_clips_become_codes(folder, tmp_path, capsys) -> None:
    arguments = ["encode", "--videos", str(folder / "clips")]
    assert main([*arguments, "--tokenizer", str(folder / "patches"), "--out", str(tmp_path / "a")]) == 0
    assert "3 clips of 8 tokens" in capsys.readouterr().out
    assert json.loads((tmp_path / "a" / "index.json").read_text())["data"] == "`clips:clips`"
    small = {"encoder_dim": 16, "encoder_depth": 1, "decoder_dim": 16, "decoder_depth": 1, "has_preview_heads": False}
    create("hieratok-tiny", **small).save_pretrained(tmp_path / "images")
    arguments += ["--tokenizer", str(tmp_path / "images"), "--num-frames", "2", "--out", str(tmp_path / "b")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "6 clips of 32 tokens" in printed
    assert "1 file skipped" in printed
    # Of 9 and 4 frames at 8 per second 4 per second leave 5 and 2.
    assert main([*arguments, "--fps", "4", "--out", str(tmp_path / "d")]) == 0
    assert "3 clips of 32 tokens" in capsys.readouterr().out


def test_a_tokenizer_of_ids_encodes_no_clips(folder, tmp_path, capsys) -> None:
    create("restok-tiny").save_pretrained(tmp_path / "t")
    arguments = ["encode", "--tokenizer", str(tmp_path / "t"), "--videos", str(folder / "clips")]
    assert main([*arguments, "--out", str(tmp_path / "c")]) == 1
    assert "holds a ResTok, which encodes no videos" in capsys.readouterr().err


def test_labels_become_files(folder, tmp_path, capsys) -> None:
    arguments = ["generate", "--pipeline", str(folder / "pipeline"), "--labels", "no. 1", "0", "--count", "2"]
    assert main([*arguments, "--num-steps", "1", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "4 clips, grid.gif and grid.png in" in printed.out
    assert printed.out.splitlines()[-1] == f"next: hiergen demo {folder / 'pipeline'}"
    assert printed.err.startswith("generate: 4 samples by ClassToVideoPipeline of ")
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.width > sheet.height > 100
    assert read_frames(tmp_path / "No-1-001.mp4", size=16).shape == (3, 4, 16, 16)
    assert (tmp_path / "cars-sports-cars-000.mp4").is_file()
    assert read_frames(tmp_path / "grid.gif", size=16).shape[1] == 4
