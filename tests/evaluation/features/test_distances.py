"""Names of distances, and the rules of their intervals."""

from __future__ import annotations

from hiergen.evaluation.features.distances import interval_rule, kernel_name, score_name


def test_names_of_what_is_not_on_inceptions_features() -> None:
    names = {name: (kernel_name(name), score_name(name)) for name in ("FID", "FID-768", "FD-digits-cnn", "mine")}
    assert names == {
        "FID": ("KID", "IS"),
        "FID-768": ("KID-768", "IS-768"),
        "FD-digits-cnn": ("KD-digits-cnn", "IS-digits-cnn"),
        "mine": ("KD-mine", "IS-mine"),
    }
    rules = {name: interval_rule(name) for name in ("KID", "rKD-x", "IS-x", "psnr")}
    assert rules["KID"] is not None
    assert rules["KID"].endswith("blocks of both sets")
    assert rules["rKD-x"] is not None
    assert rules["rKD-x"].endswith("blocks of pairs")
    assert rules["psnr"] is None
