from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from torch import nn

from hiergen.data.shapes.procedural import procedural_shape
from hiergen.metrics.fidelity import FeatureExtractor
from hiergen.metrics.frechet import Moments, frechet_distance
from hiergen.metrics.geometry import ShapeSetProtocol, chamfer_distance
from hiergen.metrics.shape_sets import (
    compare_rendered_sets,
    compare_shape_sets,
    coverage,
    matching_distance,
    nearest_neighbor_accuracy,
    pairwise_chamfer,
    render_set,
)

QUICK = ShapeSetProtocol(num_points=200)


def test_pairwise_distances_are_those_of_each_pair() -> None:
    rng = np.random.default_rng(0)
    first, second = ([rng.random((20, 3)) for _ in range(count)] for count in (3, 4))
    expected = [[chamfer_distance(a, b) for b in second] for a in first]
    np.testing.assert_allclose(pairwise_chamfer(first, second), expected)
    np.testing.assert_allclose(pairwise_chamfer(first, first), [[chamfer_distance(a, b) for b in first] for a in first])


def test_set_measures_of_a_hand_made_table() -> None:
    # Three generated shapes (rows), two references: all generated are nearest to the first.
    across = np.array([[1.0, 2.0], [0.5, 3.0], [2.0, 2.5]])
    assert coverage(across) == 0.5
    assert matching_distance(across) == (0.5 + 2.0) / 2
    # Points on a line at 0, 1, 10, 11, 12: the first two generated, then the first three.
    place = np.array([0.0, 1.0, 10.0, 11.2, 12.0])
    table = np.abs(place[:, None] - place)
    assert nearest_neighbor_accuracy(table, 2) == 1.0
    # With 10 among the generated, it and nothing else has its nearest neighbor (11.2) in the other set.
    assert nearest_neighbor_accuracy(table, 3) == 0.8
    with pytest.raises(ValueError, match="num_generated is 5 of 5 shapes, expected 1 to all but one"):
        nearest_neighbor_accuracy(table, 5)


def test_equal_distributions_score_better_than_other_classes() -> None:
    mugs = [procedural_shape(i, classes=("mug",)).to_mesh() for i in range(12)]
    shelves = [procedural_shape(i, classes=("shelf",)).to_mesh() for i in range(6)]
    good = compare_shape_sets(mugs[:6], mugs[6:], QUICK)
    bad = compare_shape_sets(shelves, mugs[6:], QUICK)
    assert good.matching_distance < bad.matching_distance
    assert bad.nearest_neighbor_accuracy == 1
    assert good.nearest_neighbor_accuracy < 1
    assert good.coverage >= bad.coverage
    same = compare_shape_sets(mugs[:6], mugs[:6], ShapeSetProtocol(num_points=2000))
    assert same.coverage == 1
    assert same.nearest_neighbor_accuracy == 0
    assert compare_shape_sets(mugs[:6], mugs[6:], QUICK) == good
    assert str(good).endswith(
        "[6 generated, 6 reference shapes; every box at center 0 and longest side 2; 200 points uniform by area, seed 0; "
        "distance = CD, mean of the two mean distances, not squared]"
    )


class Corners(nn.Module):
    """Features that are easy to compute elsewhere: four pixels of an image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, ::12, ::12].flatten(1).float() / 100


def test_rendered_distance_is_that_of_the_extractor_on_the_views() -> None:
    """Against the Fréchet distance of the same pixels."""
    boxes = [trimesh.creation.box(extents=(1, 1 + depth / 5, 0.7)) for depth in range(5)]
    balls = [trimesh.creation.icosphere(subdivisions=2).apply_scale((1, 1, 1 + k / 5)) for k in range(5)]
    extractor = FeatureExtractor("corners", "four pixels", Corners())
    apart = compare_rendered_sets(boxes, balls, extractor, num_views=2, size=24)
    assert set(apart) == {"frechet_distance", "kernel_distance", "precision", "recall"}
    views = [render_set(meshes, num_views=2, size=24) for meshes in (boxes, balls)]
    pixels = [torch.from_numpy(part[:, ::12, ::12, 0].reshape(len(part), -1) / 100) for part in views]
    features = [Moments.of(part) for part in pixels]
    assert apart["frechet_distance"] == pytest.approx(frechet_distance(*features), rel=1e-3, abs=1e-5)
    same = compare_rendered_sets(boxes, boxes, extractor, num_views=2, size=24)
    assert same["frechet_distance"] < 1e-3 < apart["frechet_distance"]
    with pytest.raises(ValueError, match="images holds 2 images, at least 10"):
        compare_rendered_sets(boxes[:1], balls, extractor, num_views=2, size=24)
    with pytest.raises(ValueError, match="there are 0 meshes and 4 views, expected at least 1"):
        render_set([])


def test_bad_sets_are_named() -> None:
    box = trimesh.creation.box()
    with pytest.raises(ValueError, match="there are 0 generated and 1 reference shapes"):
        compare_shape_sets([], [box], QUICK)
    with pytest.raises(ValueError, match="reference shape 1 has no faces"):
        compare_shape_sets([box], [box, trimesh.Trimesh()], QUICK)
    with pytest.raises(ValueError, match="num_points is 0, expected at least 1"):
        ShapeSetProtocol(num_points=0)
