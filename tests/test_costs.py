"""The byte formula of Appendix E gives the paper's Table X at its constants (MB = 2^20 bytes)."""

import pytest

from florilegium.methods.fedmmkt.costs import MB, modelled

PAPER = {
    "samples": 800,
    "image_clients": 4,
    "text_clients": 4,
    "classes": 102,
    "width": 768,
    "image_bytes": 64 * 64 * 3,
    "text_bytes": 240,
}


@pytest.mark.parametrize("variant, up, down", [("representation", 2.35, 7.13), ("logit", 0.31, 4.78)])
def test_table_x(variant, up, down):
    model = modelled(**PAPER, variant=variant)
    assert round(model["up"] / MB, 2) == up and round(model["down"] / MB, 2) == down


def test_the_augmented_view_doubles_the_representations():
    one, two = (modelled(**PAPER, variant=v)["up"] for v in ("representation", "unimodal"))
    assert two - one == 800 * 768 * 4
