from __future__ import annotations

import pytest
import trimesh

from hiergen.__main__ import main
from hiergen.registry import create

SMALL = ["--sampling.num-surface", "64", "--sampling.num-volume", "64", "--sampling.num-near", "32"]
PREPARE = [*SMALL, "--sampling.num-farthest", "0", "--views.num-views", "0", "--num-workers", "0"]
TINY_VAE = {"num_tokens": [2, 3], "width": 8, "num_heads": 2, "encoder_depth": 0, "decoder_depth": 0}


def test_meshes_become_records_and_records_become_codes(tmp_path, capsys) -> None:
    for name, size in (("cube", 1.0), ("plank", 0.3)):
        (tmp_path / "meshes" / name).mkdir(parents=True)
        trimesh.creation.box((1.0, size, 1.0)).export(tmp_path / "meshes" / name / "a.ply")
    (tmp_path / "meshes" / "broken.obj").write_text("v 1 2\n")
    shapes = tmp_path / "shapes"
    assert main(["prepare-shapes", str(tmp_path / "meshes"), str(shapes), *PREPARE]) == 0
    printed = capsys.readouterr().out
    assert "2 shapes in" in printed
    assert "skipped broken.obj" in printed
    create("pyramid-vae-tiny", **TINY_VAE, point_counts=[64, 8]).save_pretrained(tmp_path / "vae")
    arguments = ["encode", "--tokenizer", str(tmp_path / "vae"), "--shapes", str(shapes), "--out", str(tmp_path / "c")]
    assert main(arguments) == 0
    assert "2 shapes of 5 tokens" in capsys.readouterr().out


def test_a_tokenizer_of_images_encodes_no_shapes(tmp_path, capsys) -> None:
    create("restok-tiny").save_pretrained(tmp_path / "t")
    arguments = ["encode", "--tokenizer", str(tmp_path / "t"), "--shapes", "procedural", "--out", str(tmp_path / "c")]
    assert main(arguments) == 1
    assert "holds a ResTok, which encodes no shapes" in capsys.readouterr().err


def test_prepare_shapes_needs_a_source_and_a_folder(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["prepare-shapes", "meshes"])
    assert stop.value.code == 2
    assert "usage: hiergen prepare-shapes SRC OUT" in capsys.readouterr().err
    assert main(["prepare-shapes", str(tmp_path / "none"), str(tmp_path / "out")]) == 1
    assert "does not exist; give a folder, a mesh file or 'procedural'" in capsys.readouterr().err
