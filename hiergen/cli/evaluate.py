"""`hiergen evaluate KIND`: scores with a report that says how they were made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import tyro

from hiergen.checked import Checked, CountOrZero
from hiergen.cli import quiet_diffusers
from hiergen.config import nearest, parse
from hiergen.evaluation.settings import GfidSettings, RfidSettings
from hiergen.evaluation.videos.settings import VideoSettings

#: Kinds of evaluation and what they measure.
KINDS = {
    "rfid": "reconstructions of a tokenizer: FID and the like, PSNR, SSIM, LPIPS, codebook or latents, by level",
    "gfid": "images of a generator, or samples in an .npz or a folder: FID, sFID, IS, KID, precision, recall",
    "shapes": "meshes of a pipeline, a folder or a tokenizer: coverage, MMD, 1-NNA; pairs: Chamfer, F-score, normals, IoU",
    "video": "clips of a pipeline, a folder or a tokenizer: Fréchet distance, flicker; pairs: PSNR, SSIM, LPIPS by frame",
    "compare": "two reports: differences with confidence intervals",
}


@dataclasses.dataclass(frozen=True)
class CompareSettings(Checked):
    """Compare two reports.

    Attributes:
        first: The first report.json, or its folder.
        second: The second report.json, or its folder; differences are second minus first.
        resamples: Number of bootstrap draws.
        seed: Seed of the bootstrap draws.
        out: JSON file that the result is written to; by default it is only printed.
    """

    first: tyro.conf.Positional[str]
    second: tyro.conf.Positional[str]
    resamples: CountOrZero = 200
    seed: int = 0
    out: str = ""


def main(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print("usage: hiergen evaluate KIND [options]   (hiergen evaluate KIND --help for the options)\n")
        print("\n".join(f"  {name:8}  {text}" for name, text in KINDS.items()))
        raise SystemExit(0 if args else 2)
    kind, rest = args[0], args[1:]
    if kind not in KINDS:
        raise ValueError(f"unknown kind of evaluation {kind!r}{nearest(kind, KINDS)}")
    prog = f"hiergen evaluate {kind}"
    if kind == "compare":
        _compare(tyro.cli(CompareSettings, args=rest, prog=prog))
        return
    # Settings are read before what computes is imported: help and errors of options come at once.
    if kind == "rfid":
        rfid = parse(RfidSettings(), rest, prog=prog)
        from hiergen.evaluation.images.reconstruction import evaluate_reconstructions

        quiet_diffusers()
        report = evaluate_reconstructions(rfid)
    elif kind == "gfid":
        gfid = parse(GfidSettings(), rest, prog=prog)
        from hiergen.evaluation.images.generation import evaluate_generations

        quiet_diffusers()
        report = evaluate_generations(gfid)
    elif kind == "shapes":
        from hiergen.evaluation.shapes.settings import ShapesSettings

        shapes = parse(ShapesSettings(), rest, prog=prog)
        from hiergen.evaluation.shapes.evaluate import evaluate_shapes

        quiet_diffusers()
        report = evaluate_shapes(shapes)
    else:
        clips = parse(VideoSettings(), rest, prog=prog)
        from hiergen.evaluation.videos.evaluate import evaluate_videos

        quiet_diffusers()
        report = evaluate_videos(clips)
    from hiergen.evaluation.runner import tell

    tell(report)


def _compare(settings: CompareSettings) -> None:
    from rich.console import Console
    from rich.table import Table

    from hiergen.evaluation.comparison import compare
    from hiergen.evaluation.features.distances import shown_name
    from hiergen.files import check_writable, write_json

    if settings.out:
        check_writable(Path(settings.out).parent)
    result = compare(settings.first, settings.second, resamples=settings.resamples, seed=settings.seed)
    table = Table("metric", "first", "second", "difference", "95 % interval", "", caption=result["resampling"])
    rows: dict[str, dict[str, Any]] = result["metrics"]
    for name, row in rows.items():
        name = shown_name(name, result["extractor"])
        cells = ["not finite" if row[key] is None else f"{row[key]:.4g}" for key in ("first", "second", "difference")]
        half = "" if row["half_width"] is None else f"± {row['half_width']:.2g}"
        table.add_row(name, *cells, half, "clear" if row["is_clear"] else "not clear")
    Console().print(table)
    for warning in result["warnings"]:
        Console(stderr=True).print(f"warning: {warning}", markup=False)
    if settings.out:
        write_json(settings.out, result)
