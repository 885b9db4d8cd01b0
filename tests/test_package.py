"""What is in the wheel and the sdist: the library, its models and their cards; no tests, programs or pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from hiergen.pretrained.packaged import packaged_models

ROOT = Path(__file__).resolve().parent.parent


def files(kind: str) -> set[str]:
    pytest.importorskip("hatchling", reason="what is packed is hatchling's to say; `make install` brings it")
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    builder = {"wheel": WheelBuilder, "sdist": SdistBuilder}[kind](str(ROOT))
    return {str(Path(file.path).relative_to(ROOT)) for file in builder.recurse_included_files()}


def test_the_wheel_holds_the_library_and_its_models_and_nothing_else() -> None:
    packed = files("wheel")
    assert all(name.startswith("hiergen/") for name in packed)
    assert {Path(name).suffix for name in packed} == {".py", ".md", ".json", ".safetensors"}
    for folder in packaged_models():
        for part in ("README.md", "demo.json", "model_index.json", "tokenizer/config.json"):
            assert str((folder / part).relative_to(ROOT)) in packed
        for part in ("tokenizer", "generator"):
            assert str((folder / part / "diffusion_pytorch_model.safetensors").relative_to(ROOT)) in packed
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "hiergen").rglob("*.py")}
    assert modules <= packed


def test_the_sdist_holds_what_the_wheel_is_built_from() -> None:
    packed = files("sdist")
    assert files("wheel") <= packed
    beside = {name for name in packed if not name.startswith("hiergen/")}
    assert beside == {"README.md", "LICENSE", "CHANGELOG.md"}


def test_the_models_of_the_package_stay_small() -> None:
    sizes = {
        folder.name: sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) for folder in packaged_models()
    }
    assert set(sizes) == {"clips", "digits-1d", "digits-2d", "shapes-by-class"}
    assert sum(sizes.values()) < 20 * 2**20, sizes
