"""What a user can get wrong: through the command line, one sentence that says what and where, and no work before it."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hiergen.__main__ import main
from hiergen.data.config import DataConfig
from hiergen.evaluation.comparison import load_report
from hiergen.evaluation.features.extractors import build_extractor
from hiergen.evaluation.features.references import open_evaluated, read_batch, read_npz
from hiergen.evaluation.images.generation import evaluate_generations
from hiergen.evaluation.settings import ExtractorConfig, GfidSettings
from hiergen.pretrained.packaged import PACKAGED

DIGITS, SHAPES, CLIPS = (PACKAGED / name for name in ("digits-1d", "shapes-by-class", "clips"))
#: What takes long: none of it may begin before a mistake is answered.
LONG_WORK = (
    "features.extractors._digits_network",
    "features.video_extractors.digit_clip_extractor",
    "features.video_extractors.emoji_clip_extractor",
    "videos.sources.moving_digits",
    "videos.sources.moving_emoji",
    "shapes.sources.procedural_shape",
    "features.references.run_parts",
    "runner.run_parts",
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Pictures and files, good ones and one of each kind of bad ones."""
    root = tmp_path_factory.mktemp("bad")
    rng = np.random.default_rng(0)
    for name in ("good", "cut", "text", "mixed"):
        (root / name).mkdir()
        for k in range(12):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / name / f"{k:02d}.png")
    shutil.copytree(root / "good", root / "few", ignore=shutil.ignore_patterns("0[5-9]*", "1*"))
    (root / "empty").mkdir()
    broken = root / "cut" / "06.png"
    broken.write_bytes(broken.read_bytes()[:300])
    (root / "text" / "06.png").write_text("no picture")
    Image.new("RGB", (40, 32)).save(root / "mixed" / "07.png")
    images = rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    np.savez(root / "samples.npz", arr_0=images)
    np.savez(root / "other_key.npz", images=images)
    np.savez(root / "floats.npz", arr_0=images.astype(np.float32))
    np.savez(root / "first_channels.npz", arr_0=images.transpose(0, 3, 1, 2))
    np.savez(root / "few.npz", arr_0=images[:3])
    np.savez(root / "pickled.npz", arr_0=np.array([{"a": 1}, None], dtype=object))
    whole = (root / "samples.npz").read_bytes()
    (root / "cut.npz").write_bytes(whole[:2000])
    (root / "flipped.npz").write_bytes(whole[:1500] + bytes([whole[1500] ^ 255]) + whole[1501:])
    eye = np.eye(3)
    for name, mu, sigma in (
        ("pickled_mu", np.array([{}, 1], dtype=object), eye),
        ("words", np.array(["a", "b", "c"]), eye),
        ("complex", np.zeros(3, complex), eye),
        ("of_others", np.zeros(32), np.eye(32)),
        ("nan", np.full(3, np.nan), eye),
        ("negative", np.zeros(3), -eye),
        ("lopsided", np.zeros(3), np.triu(np.ones((3, 3)))),
    ):
        np.savez(root / f"{name}.npz", mu=mu, sigma=sigma)
    np.savez(root / "archive.npz", webp=np.zeros(9, np.uint8), offsets=[0, 3, 9], labels=[0, 5], classes=["a", "b"])
    np.savez(root / "beyond.npz", webp=np.zeros(9, np.uint8), offsets=[0, 3, 19], labels=[0, 1], classes=["a", "b"])
    np.savez(root / "uneven.npz", webp=np.zeros(9, np.uint8), offsets=[0, 9], labels=[0, 1], classes=["a", "b"])
    save_file({"a": torch.zeros(2)}, root / "other.safetensors")
    (root / "broken.safetensors").write_bytes(b"\0" * 40)
    (root / "broken.pth").write_text("no weights")
    (root / "other" / "parts").mkdir(parents=True)
    (root / "other" / "parts" / "identity.json").write_text('{"fingerprint": "0", "of": {"kind": "another"}}')
    shutil.copytree(DIGITS / "tokenizer", root / "nan_weights")
    file = next((root / "nan_weights").glob("*.safetensors"))
    save_file({k: v * torch.nan if v.is_floating_point() else v for k, v in load_file(file).items()}, file)
    return root


#: What is typed after the defaults of each kind ("@" is the folder of inputs), and what the answer must say.
RFID = [
    ("--data.source @/nowhere", "image folder '@/nowhere' does not exist"),
    ("--data.source @/empty", "image folder '@/empty' holds no picture"),
    ("--data.source @/few", "the evaluation holds 5 images, at least 10 are needed"),
    ("--data.source @/cut", "image '@/cut/06.png' cannot be read: image file is truncated"),
    ("--data.source @/cut --data.in-memory False", "image '@/cut/06.png' cannot be read: image file is truncated"),
    (
        "--data.source @/cut --data.hold-out 7 --data.split train",
        "image '@/cut/06.png' cannot be read: image file is truncated",
    ),
    ("--data.source @/text --data.in-memory False", "image '@/text/06.png' cannot be read: it is no PNG"),
    ("--data.source @/good --data.size 0", "size is 0, expected at least 1"),
    ("--data.source @/good --data.size 64", "the tokenizer takes (3, 32, 32): set data.size to 32"),
    ("--data.crop random", "data.crop must be 'center'"),
    ("--data.source npz:@/nowhere.npz", "'@/nowhere.npz' does not exist"),
    ("--data.source npz:@/samples.npz", "it lacks webp, offsets, labels, classes and holds arr_0"),
    ("--data.source npz:@/cut.npz", "'@/cut.npz' is no .npz file, or is damaged"),
    ("--data.source npz:@/archive.npz", "labels of '@/archive.npz' are 0 to 5, expected 0 to 1: there are 2 classes"),
    ("--data.source npz:@/beyond.npz", "offsets of '@/beyond.npz' leave its 9 bytes or go backwards"),
    ("--data.source npz:@/uneven.npz", "expected uint8 bytes, one offset more than integer labels"),
    ("--num-images 9999", "num_images is 9999, expected 0 (all) to 355"),
    ("--reference @/other_key.npz", "holds images, expected reference statistics `mu` and `sigma`"),
    ("--reference @/pickled_mu.npz", "mu of '@/pickled_mu.npz' holds pickled Python objects"),
    ("--reference @/words.npz", "mu and sigma of '@/words.npz' are <U1 and float64, expected real numbers"),
    ("--reference @/complex.npz", "are complex128 and float64, expected real numbers"),
    ("--reference @/of_others.npz", "the extractor gives 3 channels: the statistics are of another extractor"),
    ("--reference @/nan.npz", "mu and sigma of '@/nan.npz' hold NaN or infinity"),
    ("--reference @/negative.npz", "sigma of '@/negative.npz' is not symmetric or has a negative variance"),
    ("--reference @/lopsided.npz", "sigma of '@/lopsided.npz' is not symmetric or has a negative variance"),
    ("--tokenizer @/nowhere", "the folder '@/nowhere' does not exist"),
    ("--tokenizer @/empty", "'@/empty' holds neither model_index.json nor config.json"),
    (f"--tokenizer {DIGITS / 'generator'}", "holds a LevelAR, expected an image tokenizer"),
    (f"--tokenizer {PACKAGED / 'shapes-by-class' / 'tokenizer'}", "holds a PyramidVAE, which takes no images"),
    ("--tokenizer @/nan_weights", "the reconstruction of image 0 holds NaN or infinity"),
    ("--lpips alex --lpips-folder @/empty", "put alex_features.safetensors or alexnet-owt-7be5be79.pth into '@/empty'"),
    ("--lpips alex --lpips-folder @/empty", "torchvision.models.alexnet(weights='DEFAULT') downloads the latter"),
    ("--lpips alex --lpips-folder @/empty", "--lpips none leaves LPIPS out"),
    ("--lpips alx", "network is 'alx', expected one of vgg, alex, squeeze"),
    ("--extractor.name inceptoin", "unknown extractor 'inceptoin'; did you mean inception"),
    (
        "--extractor.name inception --extractor.weights @/nowhere.pth",
        "are not at '@/nowhere.pth': get weights-inception",
    ),
    ("--extractor.name inception --extractor.weights @/broken.pth", "it is damaged, or holds more than tensors"),
    ("--extractor.name inception-768 --extractor.weights @/broken.safetensors", "@/broken.safetensors' is damaged"),
    (
        "--extractor.name inception-768 --extractor.weights @/other.safetensors",
        "not those of InceptionV3 up to Mixed_6e",
    ),
    ("--extractor.name digits --extractor.weights @/other.safetensors", "expected no weights"),
    ("--passes.device gpu", "device is 'gpu', expected 'auto', 'cpu', or a GPU that is there"),
    ("--out /proc/nowhere", "output folder '/proc/nowhere' cannot be written to"),
    ("--out @/other", "'@/other/parts' holds the parts of another evaluation (kind"),
    # An extractor that is trained while it is built waits until nothing else can be wrong.
    ("--extractor.name digits --data.source @/nowhere", "image folder '@/nowhere' does not exist"),
    ("--extractor.name digits --data.source @/few", "the evaluation holds 5 images, at least 10 are needed"),
    ("--extractor.name digits --data.size 64", "the tokenizer takes (3, 32, 32): set data.size to 32"),
    ("--extractor.name digits --reference @/other_key.npz", "expected reference statistics `mu` and `sigma`"),
    (f"--extractor.name digits --tokenizer {DIGITS / 'generator'}", "holds a LevelAR, expected an image tokenizer"),
    ("--extractor.name digits --out @/other", "'@/other/parts' holds the parts of another evaluation (kind"),
]
GFID = [
    ("--samples @/nowhere", "image folder '@/nowhere' does not exist"),
    ("--samples @/nowhere.npz", "'@/nowhere.npz' does not exist, expected an .npz file"),
    ("--samples @/empty", "image folder '@/empty' holds no picture"),
    ("--samples @/few", "the evaluation holds 5 images, at least 10 are needed"),
    ("--samples @/few.npz", "the evaluation holds 3 images, at least 10 are needed"),
    ("--samples @/mixed", "have several sizes: 00.png is 32 x 32, 07.png is 40 x 32"),
    ("--samples @/cut", "image '@/cut/06.png' cannot be read: image file is truncated"),
    ("--samples @/text", "image '@/text/06.png' cannot be read: it is no PNG, "),
    ("--samples @/other_key.npz", "holds images, expected samples as `arr_0`"),
    ("--samples @/floats.npz", "is float32 of shape (12, 32, 32, 3), expected uint8 images (n, h, w, 3)"),
    ("--samples @/first_channels.npz", "is uint8 of shape (12, 3, 32, 32), expected uint8 images (n, h, w, 3)"),
    ("--samples @/pickled.npz", "arr_0 of '@/pickled.npz' holds pickled Python objects, expected numbers"),
    ("--samples @/cut.npz", "'@/cut.npz' is no .npz file, or is damaged"),
    ("--samples @/flipped.npz", "arr_0 of '@/flipped.npz' is damaged"),
    ("--samples @/samples.npz --data.source @/cut --data.in-memory False", "image '@/cut/06.png' cannot be read"),
    ("--samples @/samples.npz --data.source @/few", "the reference holds 5 images, at least 10 are needed"),
    ("--samples @/samples.npz --data.flip True --data.in-memory False", "data.flip False"),
    (
        "--samples @/samples.npz --cache /proc/nowhere",
        "cannot be written to (No such file or directory); choose another with --cache",
    ),
    (
        "--samples @/samples.npz --data.size 64",
        "have 32 x 32 pixels, the reference is read at 64 x 64: set data.size to 32",
    ),
    (
        f"--pipeline {DIGITS} --data.size 16",
        "have 32 x 32 pixels, the reference is read at 16 x 16: set data.size to 32",
    ),
    ("--samples @/samples.npz --seed -1", "seed is -1, expected at least 0"),
    ("--samples @/samples.npz --num-images 13", "num_images is 13, expected 0 (all) to 12"),
    (f"--pipeline {DIGITS} --num-images 9", "the evaluation holds 9 images, at least 10 are needed"),
    (f"--pipeline {DIGITS} --sampling.num-steps 4", "LevelAR has no setting 'num_steps'"),
    (
        f"--pipeline {DIGITS} --sampling.temperature nan",
        "temperature is nan, expected a finite number and at least 0 or None",
    ),
    (f"--pipeline {DIGITS / 'tokenizer'}", "holds a ResTok, expected a pipeline of a generator and a tokenizer"),
    (f"--pipeline {PACKAGED / 'shapes-by-class'}", "holds a ClassToShapePipeline, expected a ClassToImagePipeline"),
    (f"--pipeline {DIGITS} --out @/other", "'@/other/parts' holds the parts of another evaluation (generator, keep"),
    ("--extractor.name digits --samples @/nowhere", "image folder '@/nowhere' does not exist"),
    (
        "--extractor.name digits --samples @/samples.npz --data.source @/few",
        "the reference holds 5 images, at least 10",
    ),
    (
        f"--extractor.name digits --pipeline {DIGITS / 'tokenizer'}",
        "expected a pipeline of a generator and a tokenizer",
    ),
    (
        f"--extractor.name digits --pipeline {DIGITS} --out @/other",
        "holds the parts of another evaluation (generator, keep",
    ),
]
OTHERS = [
    ("shapes --shapes @/nowhere --reference procedural", "mesh folder '@/nowhere' does not exist"),
    ("shapes --shapes @/empty --reference procedural", "holds 0 meshes"),
    (f"shapes --tokenizer {DIGITS / 'tokenizer'}", "holds a ResTok, expected a tokenizer of shapes"),
    (f"shapes --pipeline {PACKAGED / 'shapes-by-class'} --num-shapes 0", "num_shapes is 0, expected at least 1"),
    ("shapes --shapes @/empty --reference @/nowhere", "mesh folder '@/empty' holds 0 meshes"),
    (f"shapes --tokenizer {SHAPES / 'tokenizer'} --reference @/nowhere", "mesh folder '@/nowhere' does not exist"),
    (f"shapes --tokenizer {SHAPES / 'tokenizer'} --out @/other", "holds the parts of another evaluation (depth, kind"),
    (f"shapes --pipeline {SHAPES} --out @/other", "holds the parts of another evaluation (depth, generator, kind"),
    (f"shapes --pipeline {DIGITS}", "holds a ClassToImagePipeline, expected a ClassToShapePipeline"),
    ("shapes --shapes @/empty --resamples 1", "resamples is 1, expected 0 (no intervals) or at least 2"),
    ("video --videos @/nowhere", "video folder '@/nowhere' does not exist"),
    ("video --videos @/empty", "holds no video file"),
    ("video --videos @/empty --num-reference 3", "the reference holds 3 clips, at least 10 are needed"),
    (f"video --tokenizer {DIGITS / 'tokenizer'}", "holds a ResTok, expected a tokenizer of clips"),
    (
        f"video --tokenizer {CLIPS / 'tokenizer'}",
        "makes clips of shape (3, 32, 24, 24), those asked for have (3, 32, 32",
    ),
    (
        f"video --tokenizer {CLIPS / 'tokenizer'} --clips.size 24 --out @/other",
        "holds the parts of another evaluation (",
    ),
    (f"video --pipeline {CLIPS} --num-videos 3", "the evaluation holds 3 clips, at least 10 are needed"),
    (f"video --pipeline {DIGITS}", "holds a ClassToImagePipeline, expected a ClassToVideoPipeline"),
    (f"video --pipeline {CLIPS} --extractor.name i3d", "unknown extractor of clips 'i3d'"),
    (
        f"video --pipeline {CLIPS} --extractor.name frames-inception --extractor.weights @/nowhere.pth",
        "are not at '@/nowhere.pth': get weights-inception",
    ),
    (f"video --pipeline {CLIPS} --lpips alex --lpips-folder @/empty", "put alex_features.safetensors or"),
    ("compare @/nowhere @/nowhere --out /proc/nowhere/x.json", "output folder '/proc/nowhere' cannot be written to"),
    ("compare @/nowhere @/nowhere", "'@/nowhere' does not exist, expected the report.json"),
    ("compare @/broken.pth @/broken.pth", "'@/broken.pth' is no report of `hiergen evaluate`: it holds no JSON object"),
]
COMMON = "--extractor.name mean-color --distances.resamples 0 --passes.device cpu"
CASES = [
    *((f"rfid --tokenizer {DIGITS / 'tokenizer'} --lpips none {COMMON} {typed}", said) for typed, said in RFID),
    *((f"gfid {COMMON} {typed}", said) for typed, said in GFID),
    *OTHERS,
]


@pytest.mark.parametrize(("command", "message"), CASES, ids=[f"{k}-{m[:40]}" for k, (_, m) in enumerate(CASES)])
def test_every_mistake_is_answered_in_one_sentence(
    command: str,
    message: str,
    inputs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Weights that this machine happens to have must not answer for the missing ones.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    if not message.startswith(("image '@/cut", "image '@/text", "the reconstruction")):
        for name in LONG_WORK:
            monkeypatch.setattr(f"hiergen.evaluation.{name}", _begin_long_work)
    words = command.replace("@", str(inputs)).split()
    if words[0] != "compare" and "--out" not in words:
        words += ["--out", str(tmp_path / "out")]
    if words[0] == "gfid" and "--cache" not in words:
        words += ["--cache", str(tmp_path / "cache")]
    try:
        code = main(["evaluate", *words])
    except SystemExit as stop:
        # Settings that are wrong by themselves are refused while they are parsed.
        code = stop.code
    assert code in (1, 2)
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert " ".join(message.replace("@", str(inputs)).split()) in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("out/parts/part-*"))
    assert not (tmp_path / "out" / "report.json").exists()


def _begin_long_work(*_: object, **__: object) -> None:
    raise AssertionError("long work began")


def _mutations(data: bytes, count: int) -> list[bytes]:
    """Return cut copies and copies with a few bytes changed, the same ones every time."""
    draws = random.Random(0)
    found = []
    for k in range(count):
        changed = bytearray(data[: draws.randrange(len(data))] if k % 2 else data)
        for _ in range(draws.randint(1, 4) if changed else 0):
            # The first bytes say what the file is; half of the changes are among them.
            changed[draws.randrange(min(len(changed), 300) if draws.random() < 0.5 else len(changed))] ^= draws.randint(
                1, 255
            )
        found.append(bytes(changed))
    return found


@pytest.mark.parametrize("kind", ["png", "samples", "statistics", "archive", "weights", "values"])
def test_damaged_files_raise_errors_that_name_them(kind: str, inputs: Path, tmp_path: Path) -> None:
    """Whatever a file becomes, it is read, or refused by a ValueError with its name: nothing else comes out."""
    count = 30
    refused: list[tuple[str, str]] = []
    extractor = build_extractor(ExtractorConfig("mean-color"))
    path = tmp_path / {"png": "x.png", "weights": "x.safetensors", "values": "values.safetensors"}.get(kind, "x.npz")
    if kind == "statistics":
        np.savez(tmp_path / "whole.npz", mu=np.zeros(3), sigma=np.eye(3))
    elif kind == "archive":
        data = np.frombuffer((inputs / "good" / "00.png").read_bytes(), np.uint8)
        np.savez(tmp_path / "whole.npz", webp=data, offsets=[0, len(data)], labels=[0], classes=["a"])
    elif kind == "values":
        save_file({"psnr": torch.zeros(20)}, tmp_path / "whole.npz")
        (tmp_path / "report.json").write_text('{"kind": "rfid", "metrics": {}}')
    source = {
        "png": inputs / "good" / "00.png",
        "samples": inputs / "samples.npz",
        "weights": inputs / "other.safetensors",
    }
    for data in _mutations(source.get(kind, tmp_path / "whole.npz").read_bytes(), count):
        path.write_bytes(data)
        try:
            if kind == "png":
                read_batch(open_evaluated(DataConfig(source=str(tmp_path), size=8, in_memory=False)), [0])
            elif kind == "samples":
                evaluate_generations(
                    GfidSettings(
                        samples=str(path),
                        num_images=99,
                        data=DataConfig(source="digits"),
                        extractor=ExtractorConfig("mean-color"),
                    )
                )
            elif kind == "statistics":
                read_npz(path, extractor)
            elif kind == "archive":
                read_batch(open_evaluated(DataConfig(source=f"npz:{path}", size=8)), [0])
            elif kind == "weights":
                build_extractor(ExtractorConfig("inception-768", str(path)))
            else:
                load_report(tmp_path)
        except ValueError as error:
            refused.append((path.name, str(error)))
    for name, message in refused:
        assert name in message or "num_images is 99" in message or "the weights are not those" in message, message
    assert len(refused) >= count // 2
