from __future__ import annotations

import collections

import numpy as np
import pytest

from hiergen.data.shapes.procedural import PROCEDURAL_CLASSES, procedural_shape
from hiergen.geometry.poses import HALF_SIZE
from hiergen.geometry.ray_crossings import contains


def test_shapes_are_single_watertight_bodies_that_fill_the_box() -> None:
    for index in range(2 * len(PROCEDURAL_CLASSES)):
        shape = procedural_shape(index, seed=3)
        mesh = shape.to_mesh()
        assert mesh.is_watertight, (index, shape.class_name)
        assert mesh.volume > 0.05
        assert mesh.body_count == 1, (index, shape.class_name)
        assert np.ptp(mesh.bounds, axis=0).max() == pytest.approx(2 * HALF_SIZE)
        np.testing.assert_allclose(mesh.bounds.sum(axis=0), 0, atol=1e-6)
        points = np.random.default_rng(index).uniform(-1.05, 1.05, (1000, 3))
        np.testing.assert_array_equal(shape.solid.contains(points), contains(mesh.triangles, points))


def test_a_shape_depends_on_its_seed_and_index_alone() -> None:
    first, again = procedural_shape(11, seed=5).to_mesh(), procedural_shape(11, seed=5).to_mesh()
    np.testing.assert_array_equal(first.vertices, again.vertices)
    np.testing.assert_array_equal(first.faces, again.faces)
    other = [procedural_shape(11, seed=6), procedural_shape(11 + 8, seed=5)]
    for shape in other:
        assert shape.class_name == procedural_shape(11, seed=5).class_name
        assert shape.to_mesh().volume != pytest.approx(first.volume, rel=1e-6)


def test_classes_are_balanced_and_selectable() -> None:
    assert len(PROCEDURAL_CLASSES) >= 6
    count = collections.Counter(procedural_shape(i).class_name for i in range(3 * len(PROCEDURAL_CLASSES)))
    assert set(count) == set(PROCEDURAL_CLASSES)
    assert set(count.values()) == {3}
    assert [procedural_shape(i, classes=("mug", "chair")).class_name for i in range(3)] == ["mug", "chair", "mug"]


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"classes are \['boat'\], expected some of bed, bottle"):
        procedural_shape(0, classes=("boat",))
    with pytest.raises(ValueError, match="index is -1 and seed is 0, expected both to be at least 0"):
        procedural_shape(-1)
