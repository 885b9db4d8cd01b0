"""Model folders and shards that want to run code or read what is not theirs: nothing runs, and each gets an error that says why."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import hiergen
from hiergen.data.images.shards import ShardPictures
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pyramid import specs_to_json
from hiergen.registry import create

WEIGHTS = "diffusion_pytorch_model.safetensors"


class Touch:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.fixture
def canary(tmp_path) -> Path:
    """The file that is there as soon as code of an attacker has run."""
    return tmp_path / "canary"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A good pipeline, to be spoiled."""
    tokenizer = create("restok-tiny").eval()
    generator = create("har-tiny", depth=1, level_specs=specs_to_json(tokenizer.specs)).eval()
    ClassToImagePipeline(tokenizer=tokenizer, generator=generator).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def module(folder: Path, canary: Path, name: str) -> None:
    (folder / f"{name}.py").write_text(f"import pathlib\npathlib.Path({str(canary)!r}).touch()\nclass Evil: pass\n")


def pickled_weights(folder: Path, canary: Path) -> None:
    (folder / "generator" / WEIGHTS).unlink()
    torch.save(Touch(canary), folder / "generator" / "diffusion_pytorch_model.bin")


def pickle_named_safetensors(folder: Path, canary: Path) -> None:
    (folder / "generator" / WEIGHTS).write_bytes(pickle.dumps(Touch(canary)))


def auto_map(folder: Path, canary: Path) -> None:
    module(folder, canary, "evil")
    edit(folder / "model_index.json", _class_name="Evil", auto_map={"AutoModel": "evil.Evil"}, trust_remote_code=True)


def module_in_the_folder(folder: Path, canary: Path) -> None:
    module(folder, canary, "pipeline")
    edit(folder / "model_index.json", _class_name=["pipeline", "Evil"])


def foreign_class(folder: Path, canary: Path) -> None:
    edit(folder / "model_index.json", tokenizer=["os", "system"])


def module_of_a_component(folder: Path, canary: Path) -> None:
    module(folder / "tokenizer", canary, "evil")
    edit(folder / "model_index.json", tokenizer=["evil", "Evil"])


def path_in_a_component_name(folder: Path, canary: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["../../outside"] = index["tokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index))


def class_of_another_kind(folder: Path, canary: Path) -> None:
    edit(folder / "tokenizer" / "config.json", _class_name="os.system")
    edit(folder / "model_index.json", tokenizer=["subprocess", "Popen"])


def link_to_another_file(folder: Path, canary: Path) -> None:
    (folder / "generator" / WEIGHTS).unlink()
    (folder / "generator" / WEIGHTS).symlink_to("/etc/passwd")


def huge_header(folder: Path, canary: Path) -> None:
    (folder / "generator" / WEIGHTS).write_bytes(struct.pack("<Q", 2**60) + b"{}")


def wrong_shapes(folder: Path, canary: Path) -> None:
    state = {name: torch.zeros(3) for name in ("blocks.0.attention.qkv.weight", "norm.weight")}
    save_file(state, folder / "generator" / WEIGHTS)


def other_levels(folder: Path, canary: Path) -> None:
    edit(
        folder / "generator" / "config.json",
        level_specs=[{"num_tokens": 10**9, "grid": None, "dim": 8, "vocab_size": 10**9}],
    )


def deep_nesting(folder: Path, canary: Path) -> None:
    (folder / "model_index.json").write_text("[" * 10_000)


def list_for_an_object(folder: Path, canary: Path) -> None:
    (folder / "model_index.json").write_text("[]")


#: Each with what its error says.
ATTACKS: dict[Callable[[Path, Path], None], str] = {
    pickled_weights: "no file named diffusion_pytorch_model.safetensors",
    pickle_named_safetensors: "Unable to load weights",
    auto_map: "holds a 'Evil', which hiergen does not load",
    module_in_the_folder: "holds a .*'Evil'.*, which hiergen does not load",
    foreign_class: r"names \['os', 'system'\] as its tokenizer, which hiergen does not load",
    module_of_a_component: r"names \['evil', 'Evil'\] as its tokenizer, which hiergen does not load",
    class_of_another_kind: r"names \['subprocess', 'Popen'\] as its tokenizer",
    path_in_a_component_name: r"names a component '\.\./\.\./outside', which a ClassToImagePipeline does not have",
    link_to_another_file: "Unable to load weights",
    huge_header: "Unable to load weights",
    wrong_shapes: "expected shape",
    other_levels: "the levels hold 1000000000 tokens",
    deep_nesting: "is not a model's config",
    list_for_an_object: "is not a model's config: it holds a list, expected an object",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_hostile_folder_runs_nothing_and_is_refused(attack, folder, canary) -> None:
    attack(folder, canary)
    with pytest.raises(ValueError, match=ATTACKS[attack]) as error:
        hiergen.from_pretrained(folder)
    assert not canary.exists()
    assert "root:" not in str(error.value)


def test_the_canary_would_have_been_seen(canary) -> None:
    pickle.loads(pickle.dumps(Touch(canary)))
    assert canary.exists()


def test_the_folder_is_good_before_it_is_spoiled(folder) -> None:
    assert isinstance(hiergen.from_pretrained(folder), ClassToImagePipeline)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_a_pickle_in_a_shard_is_not_opened(tmp_path, canary, write_tar) -> None:
    evil = pickle.dumps(Touch(canary))
    source = ShardPictures(
        str(write_tar(tmp_path / "a.tar", {"0.png": png(), "0.cls": b"0", "0.pyd": evil, "0.pickle": evil}))
    )
    assert len(source.labels) == 1
    assert source.read(0).size == (8, 8)
    disguised = ShardPictures(str(write_tar(tmp_path / "b.tar", {"0.png": evil, "0.cls": b"0"})))
    with pytest.raises(ValueError, match="it is no PNG"):
        disguised.read(0)
    assert not canary.exists()


@pytest.mark.parametrize("address", ["pipe:touch {}", "pipe:touch {}; cat a.tar", "-x | touch {}"])
def test_a_shard_is_a_file_and_no_command(address, canary) -> None:
    with pytest.raises(ValueError, match=r"does not exist|no shard|matches no"):
        ShardPictures(address.format(canary))
    assert not canary.exists()


def test_a_name_that_climbs_out_of_a_shard_writes_nothing(tmp_path, canary, write_tar) -> None:
    name = f"../{canary.name}"
    before = sorted(tmp_path.parent.rglob("*"))
    path = write_tar(
        tmp_path / "a.tar", {f"{name}.png": png(), f"{name}.cls": b"0", "/etc/x.png": png(), "/etc/x.cls": b"1"}
    )
    source = ShardPictures(str(path))
    assert [source.read(index).size for index in range(2)] == [(8, 8), (8, 8)]
    assert sorted(tmp_path.parent.rglob("*")) == sorted([*before, path])


def test_a_model_that_lacks_a_weight_is_refused(tmp_path) -> None:
    """diffusers warns and leaves it random."""
    model = create("flow-tiny", dim=16, depth=1, num_heads=1)
    model.save_pretrained(tmp_path)
    assert torch.equal(hiergen.from_pretrained(tmp_path).blocks[0].ffn.w12.bias, model.blocks[0].ffn.w12.bias)
    state = model.state_dict()
    del state["blocks.0.ffn.w12.bias"]
    save_file(state, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"the weights in .* lack blocks\.0\.ffn\.w12\.bias"):
        hiergen.from_pretrained(tmp_path)
