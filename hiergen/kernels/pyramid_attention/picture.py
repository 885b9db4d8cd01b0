"""A picture of a plan: one color per pool."""

from __future__ import annotations

from pathlib import Path

from hiergen.kernels.pyramid_attention.plan import PyramidPlan
from hiergen.kernels.pyramid_attention.pooling import POOLS


def draw_plan(plan: PyramidPlan, path: str | Path, *, batch: int = 0, head: int = 0) -> Path:
    """Write a PNG of one head's plan and return its path: rows are query blocks, columns key blocks.

    Raises:
        IndexError: If the plan has no such batch entry or head.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    pools = plan.pools[batch, head].cpu().long()
    figure = Figure(figsize=(6, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colors = ListedColormap(["#f4f4f4", "#08306b", "#2171b5", "#6baed6", "#c6dbef"])
    # 0, 1, 2, 4, 8 become 0 … 4.
    rank = sum((pools >= pool).long() for pool in POOLS)
    image = axes.imshow(rank, cmap=colors, norm=BoundaryNorm(range(6), 5), interpolation="nearest", aspect="auto")
    bar = figure.colorbar(image, ax=axes, ticks=[0.5, 1.5, 2.5, 3.5, 4.5])
    bar.ax.set_yticklabels(["skipped", "1 key", "2 keys", "4 keys", "8 keys"])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"key block ({plan.key_block} keys)")
    axes.set_ylabel(f"query block ({plan.query_block} queries)")
    axes.set_title(f"density {float(plan.density):.3f}, coverage {float(plan.coverage):.3f}")
    path = Path(path)
    figure.savefig(path, dpi=120)
    return path
