"""PSNR, SSIM, MS-SSIM and LPIPS of known distortions of a folder of pictures, beside other implementations: an anchor that others can reproduce.

    python eval/anchor_metrics.py --images DATA/kodak --lpips DATA/lpips

Pictures are distorted as bytes and compared as bytes: JPEG by Pillow (its own chroma subsampling), Gaussian blur by SciPy (mirrored at the
border), smaller and back by Pillow's bicubic filter. Beside ours stand scikit-image (PSNR; SSIM with the same window; SSIM with its own defaults
and on luma alone, which are other definitions), a transcription of MS-SSIM in SciPy, and the package `lpips` with the same weights.
"""

import dataclasses
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from jaxtyping import Float, UInt8
from PIL import Image

from hiergen.config import parse
from hiergen.data.images.files import list_images, read_image
from hiergen.evaluation.features.extractors import open_lpips
from hiergen.evaluation.protocol import environment
from hiergen.evaluation.report import table
from hiergen.files import check_writable, write_json, write_text
from hiergen.metrics.pixel import MS_SSIM_MIN_SIDE, MS_SSIM_WEIGHTS, ms_ssim, psnr, ssim

Pixels = UInt8[np.ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        images: Folder of pictures whose sides are at least 176 pixels long.
        lpips: Folder with LPIPS' AlexNet; "" leaves LPIPS out.
        out: Folder of the table.
    """

    images: str = "DATA/kodak"
    lpips: str = ""
    out: str = "evaluation/anchor"


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    """Return a picture as JPEG holds it."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def blurred(pixels: Pixels, sigma: float) -> Pixels:
    """Return a picture under a Gaussian of so many pixels, cut at four of them."""
    from scipy.ndimage import gaussian_filter

    wide = gaussian_filter(pixels.astype(np.float64), (sigma, sigma, 0), mode="mirror", truncate=4.0)
    return wide.round().clip(0, 255).astype(np.uint8)


def resized(pixels: Pixels, factor: int) -> Pixels:
    """Return a picture after it was smaller by a factor."""
    picture = Image.fromarray(pixels)
    small = picture.resize((picture.width // factor, picture.height // factor), Image.Resampling.BICUBIC)
    return np.asarray(small.resize(picture.size, Image.Resampling.BICUBIC))


DISTORTIONS: dict[str, Callable[[Pixels], Pixels]] = {
    **{f"JPEG, quality {q}": lambda x, q=q: jpeg(x, q) for q in (95, 75, 50, 30, 10)},
    **{f"blur, sigma {s}": lambda x, s=s: blurred(x, s) for s in (1, 2, 4)},
    **{f"1/{f} the size and back": lambda x, f=f: resized(x, f) for f in (2, 4)},
}


def ms_ssim_in_scipy(first: Pixels, second: Pixels) -> float:
    """Return MS-SSIM in float64: Gaussian windows of 11 pixels that lie whole in the picture, 2 x 2 means between scales, by channel."""
    return float(np.mean([_ms_ssim(first[..., c] / 255, second[..., c] / 255) for c in range(3)]))


def _ms_ssim(x: Float[np.ndarray, "h w"], y: Float[np.ndarray, "h w"]) -> float:
    from scipy.ndimage import gaussian_filter

    def blur(z: np.ndarray) -> np.ndarray:
        return gaussian_filter(z, 1.5, radius=5)[5:-5, 5:-5]

    result = 1.0
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        mx, my = blur(x), blur(y)
        term = (2 * (blur(x * y) - mx * my) + 9e-4) / (blur(x * x) - mx**2 + blur(y * y) - my**2 + 9e-4)
        if scale == len(MS_SSIM_WEIGHTS) - 1:
            term = term * (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
        result *= max(term.mean(), 0.0) ** weight
        x, y = (z[: z.shape[0] // 2 * 2, : z.shape[1] // 2 * 2] for z in (x, y))
        x, y = ((z[::2, ::2] + z[1::2, ::2] + z[::2, 1::2] + z[1::2, 1::2]) / 4 for z in (x, y))
    return float(result)


def by_others(first: Pixels, second: Pixels) -> dict[str, float]:
    """Return the metrics of scikit-image and SciPy; "ssim, 7 x 7" and "ssim, luma" are other definitions than ours."""
    from skimage.color import rgb2gray
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    gray = [rgb2gray(x) * 255 for x in (first, second)]
    return {
        "psnr": float(peak_signal_noise_ratio(first, second, data_range=255)),
        "ssim": float(structural_similarity(first, second, data_range=255, channel_axis=2, **window)),
        "ms_ssim": ms_ssim_in_scipy(first, second),
        "ssim, 7 x 7": float(structural_similarity(first, second, data_range=255, channel_axis=2)),
        "ssim, luma": float(structural_similarity(*gray, data_range=255, **window)),
    }


def package_lpips(folder: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the distance of the package `lpips`, its AlexNet filled with the weights of a folder."""
    import lpips
    from safetensors.torch import load_file

    made: Any = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    weights = load_file(Path(folder) / "alex_features.safetensors")
    with torch.no_grad():
        for name, value in made.net.named_parameters():
            _, index, kind = name.split(".")
            value.copy_(weights[f"features.{index}.{kind}"])
    return lambda x, y: made(x, y).flatten()


@torch.no_grad()
def measure(settings: Settings) -> dict[str, Any]:
    """Return the means of every distortion and the largest difference to other implementations, and write them as a table."""
    out = check_writable(settings.out)
    paths = list_images(settings.images)
    pictures = [np.asarray(read_image(path)) for path in paths]
    small = next((p for p, x in zip(paths, pictures, strict=True) if min(x.shape[:2]) < MS_SSIM_MIN_SIDE), None)
    if small is not None:
        raise ValueError(f"{str(small)!r} is smaller than {MS_SSIM_MIN_SIDE} pixels, expected pictures for MS-SSIM")
    distance: Any = None
    if settings.lpips:
        distance = (
            open_lpips("alex", settings.lpips, MS_SSIM_MIN_SIDE, torch.device("cpu")),
            package_lpips(settings.lpips),
        )
    rows, gaps = [], dict.fromkeys(("psnr", "ssim", "ms_ssim", "lpips"), 0.0)
    for label, distort in DISTORTIONS.items():
        values: list[dict[str, float]] = []
        for picture in pictures:
            changed = distort(picture)
            x, y = (torch.from_numpy(z.copy()).permute(2, 0, 1)[None] / 127.5 - 1 for z in (changed, picture))
            ours = {"psnr": psnr(x, y), "ssim": ssim(x, y), "ms_ssim": ms_ssim(x, y)}
            theirs = by_others(changed, picture)
            if distance is not None:
                ours["lpips"], theirs["lpips"] = distance[0](x, y), float(distance[1](x, y))
            found = {name: float(value) for name, value in ours.items()}
            gaps |= {name: max(gaps[name], abs(value - theirs[name])) for name, value in found.items()}
            values.append({**theirs, **found})
        rows.append({"distortion": label, **{k: float(np.mean([v[k] for v in values])) for k in values[0]}})
    gaps = {name: gap for name, gap in gaps.items() if name in rows[0]}
    report = {"images": len(pictures), "rows": rows, "largest_difference": gaps, "pillow": PIL.__version__}
    report["environment"] = environment(torch.device("cpu"))
    names = [name for name in ("psnr", "ssim", "ms_ssim", "lpips", "ssim, 7 x 7", "ssim, luma") if name in rows[0]]
    body = [[row["distortion"], *(f"{row[name]:.4f}" for name in names)] for row in rows]
    last = ["largest difference to others", *(f"{gaps[name]:.1e}" if name in gaps else "" for name in names)]
    write_text(out / "anchor.md", "\n".join([*table(["distortion", *names], [*body, last]), ""]))
    write_json(out / "anchor.json", report)
    return report


def main(args: list[str] | None = None) -> None:
    settings = parse(Settings(), args, prog="anchor_metrics", description=__doc__)
    measure(settings)
    print((Path(settings.out) / "anchor.md").read_text())


if __name__ == "__main__":
    main(sys.argv[1:])
