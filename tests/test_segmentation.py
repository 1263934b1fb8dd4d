"""Clients whose task is segmentation: masks, moves, the model, mIoU, and FedDifRC's terms on maps, worked by hand."""

import json

import pytest
import torch
from torch import nn

from client_app.batches import Batch
from client_app.guidance.feddifrc_dense import DenseFedDifRCGuide
from florilegium import preflight
from florilegium.config.composition import SettingsError
from florilegium.data.datasets import Rows
from florilegium.data.masks import foreground, masks
from florilegium.diffusion.projection import Axes, Projection
from florilegium.learning.augmentation import Moves, drawn, moved
from florilegium.learning.segmentation import dense_ndcr, figures, region_mean
from florilegium.methods.guidance.settings import FedDifRCSettings
from florilegium.models.build import build

IMAGES = "clients.mix=[{modality: image, model: vit}, {modality: image, model: vit}]"
SEGMENT = ["clients.task=segmentation", IMAGES]


def still(count=1):
    return Moves(0, torch.zeros(2, count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool))


# -- masks and moves ---------------------------------------------------------------------------------------------------


def ring():
    """A black ring on white, its hole white as the ground; and the same, open to the edge."""
    closed = torch.full((1, 3, 6, 6), 255, dtype=torch.uint8)
    closed[..., 1:5, 1:5], closed[..., 2:4, 2:4] = 0, 250
    opened = closed.clone()
    opened[..., 3, :] = 255
    return torch.cat([closed, opened])


def test_what_is_enclosed_belongs_to_the_object_and_what_reaches_the_edge_does_not():
    closed, opened = foreground(ring())
    assert closed.sum() == 16 and closed[1:5, 1:5].all()
    assert opened.sum() == 4 + 2 + 0 + 4 and not opened[2, 2] and opened[1, 1:5].all()  # row by row
    dark = foreground(255 - ring())  # on black
    assert torch.equal(dark[0], closed)
    assert not foreground(torch.full((1, 3, 4, 4), 7, dtype=torch.uint8)).any()  # nothing but ground


def test_a_mask_has_the_class_and_one():
    rows = Rows(torch.tensor([5, 6]), torch.tensor([0, 3]), ring())
    assert masks(rows).unique().tolist() == [0, 1, 4]
    assert masks(rows, torch.tensor([1])).unique().tolist() == [0, 4]


def test_a_place_of_a_moved_image_is_where_it_was():
    """Shifted by a pixel of four, or mirrored: read with grid_sample at its places, an image is the moved one."""
    moves = Moves(1, torch.tensor([[1, 2], [1, 0]]), torch.tensor([True, False]))
    image = torch.arange(32.0).view(2, 1, 4, 4)
    shown = moved(image, moves, comes_in=-1.0)
    places = moves.places(4, 4)
    assert places[0, 0, :, 0].tolist() == [0.75, 0.25, -0.25, -0.75]  # mirrored alone
    assert places[1, :, 0, 1].tolist() == pytest.approx([-0.25, 0.25, 0.75, 1.25])  # the last row came from outside
    found = nn.functional.grid_sample(image, places, align_corners=False)
    inside = (places.abs() < 1).all(-1)[:, None]
    assert torch.allclose(found[inside], shown[inside], atol=1e-5) and (shown[~inside] == -1).all()


def test_masks_move_as_images_do():
    moves = drawn(8, torch.Generator().manual_seed(0), 2, True)
    image = ring()[:1].repeat(8, 1, 1, 1)
    seen = moved(image.float(), moves, 255.0)
    there = moved(masks(Rows(torch.arange(8), torch.zeros(8).long(), image))[:, None], moves, 0)[:, 0]
    assert ((seen[:, 0] == 0) <= (there == 1)).all() and ((there == 0) <= (seen[:, 0] == 255)).all()


# -- the figures -------------------------------------------------------------------------------------------------------


def test_miou_by_hand():
    """Ground: 2 of 4 of the union; class 1: 1 of 3; class 2 is nowhere, so it does not count; 3 is only predicted."""
    true = torch.tensor([[[0, 0, 0], [1, 1, 0]]])
    said = torch.tensor([[[0, 0, 3], [1, 3, 1]]])
    found = figures(said, true, 4)
    assert found["miou"] == pytest.approx((2 / 4 + 1 / 3 + 0) / 3)
    assert found["pixel_accuracy"] == pytest.approx(3 / 6)


# -- the model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["resnet", "vit", "beit"])
def test_each_body_gives_maps_and_pixels(architecture, toy_conf):
    conf = toy_conf("method=fedavg", "clients.task=segmentation", IMAGES.replace("vit", architecture))
    model = build(conf.clients, "image", architecture, 4, side=16)
    z = model.encode(torch.randn(2, 3, 16, 16))
    assert z.shape[:2] == (2, 32) and z.shape[2] == z.shape[3] >= 4
    assert z.mean(1).abs().max() < 1e-5  # each place is finished as a representation is
    assert model.head(z).shape == (2, 5, 16, 16)


# -- FedDifRC ----------------------------------------------------------------------------------------------------------


def test_the_mean_of_a_region_by_hand():
    """Cells of 2 x 2 pixels; the object has all of the first cell, half of the second."""
    z = torch.tensor([[[[4.0, 10.0], [7.0, 8.0]]]])
    inside = torch.zeros(1, 4, 4, dtype=torch.bool)
    inside[0, :2, :3] = True
    assert region_mean(z, inside).item() == pytest.approx((4 + 0.5 * 10) / 1.5)
    assert region_mean(z, inside & False).item() == pytest.approx(29 / 4)  # no object: all


def test_dense_ndcr_by_hand():
    """2 x 2 places: H along x everywhere but along y in the last. z is along x: |z - H|^2 is 0, 0, 0 and 2."""
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    h = torch.stack([x, x, x, y], -1).view(1, 2, 2, 2)
    z = 5 * torch.stack([x, x, x, x], -1).view(1, 2, 2, 2)
    assert dense_ndcr(z, h, still(), 4).item() == pytest.approx(2 / 4)
    assert dense_ndcr(h, h, still(), 4).item() == pytest.approx(0, abs=1e-6)
    mirrored = Moves(0, torch.zeros(2, 1).long(), torch.tensor([True]))
    assert dense_ndcr(h, h, mirrored, 4).item() == pytest.approx(4 / 4)  # two of four places differ
    assert dense_ndcr(h.flip(-1), h, mirrored, 4).item() == pytest.approx(0, abs=1e-6)  # z saw the mirrored image
    down = Moves(2, torch.tensor([[4], [2]]), torch.tensor([False]))  # by one place: the last row was outside
    assert dense_ndcr(torch.stack([x, y, y, y], -1).view(1, 2, 2, 2), h, down, 4).item() == pytest.approx(0, abs=1e-6)
    finer = z.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert dense_ndcr(finer, h, still(), 4, "cos").item() == pytest.approx(1 / 4)


def test_a_projection_on_a_grid_keeps_places():
    """Four places of two channels; the axis is the first channel, less its mean 1."""
    axes = Axes(torch.tensor([1.0, 0.0]), torch.tensor([[1.0, 0.0]]), torch.ones(1))
    maps = {"up1": torch.tensor([[[1.0, 9.0], [2.0, 9.0], [3.0, 9.0], [4.0, 9.0]]])}
    assert Projection({"up1": axes}).on_grid(maps, 2).tolist() == [[[[0.0, 1.0], [2.0, 3.0]]]]
    assert Projection({"up1": axes}).on_grid(maps, 1).tolist() == [[[[1.5]]]]
    assert Projection({"up1": axes}).on_grid(maps, 4).shape == (1, 1, 4, 4)


class Frozen:
    """Row 0: H along y, F+ along x, F- along y; on the map H is along x at every place."""

    def at(self, ids):
        return ids

    def standard(self, features):
        return features

    def features(self):
        return torch.tensor([[[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]])

    def maps(self):
        return torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2).half()


def test_the_guide_contrasts_the_object_and_holds_every_place_to_h():
    """z is along x on the object (left) and along y on the ground: s+ = 1, s- = 0; half of the places differ from H."""
    z = torch.zeros(1, 2, 2, 2)
    z[0, 0, :, 0] = z[0, 1, :, 1] = 1
    mask = torch.tensor([[[3, 3, 0, 0]] * 4])
    batch = Batch(torch.zeros(1, 3, 4, 4), torch.tensor([2]), torch.tensor([0]), masks=mask, moves=still())
    terms = DenseFedDifRCGuide(FedDifRCSettings(temperature=1.0, ndcr=0.5), None, Frozen()).terms(z, batch, None)
    assert terms["tdcl"].item() == pytest.approx(torch.tensor([1.0, 0.0]).logsumexp(0).item() - 1)
    assert terms["ndcr"].item() == pytest.approx(0.5 * (0 + 2) / 2)


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["feddifrc", "fedavg"])
def test_a_run_is_judged_by_miou(method, toy_conf, federated):
    conf = toy_conf(f"method={method}", *SEGMENT, "rounds=1", "method.client.local_epochs=1")
    preflight.validate(conf)
    out = federated(conf)
    last = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()][-1]["metrics"]
    assert 0 < last["client/miou/image"] < 1 and 0 < last["client/pixel_accuracy/image"] <= 1
    assert last["client/miou/0"] == last["client/miou/image"] and "client/accuracy/image" not in last
    assert 0 < last["client/validation/image"] < 1
    assert "mIoU" in (out / "report.html").read_text()
    faults = [e for e in map(json.loads, (out / "ledger.jsonl").read_text().splitlines()) if e["fault"]]
    assert not faults
    if method == "feddifrc":
        assert last["train/ndcr"] > 0 and last["train/tdcl"] > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=fedavg", IMAGES.replace("image", "text").replace("vit", "bert")], r"clients.mix\[0\]: .*image c"),
        (["method=fedproto", IMAGES], "fedproto has nothing for clients.task=segmentation; these have: fedavg"),
        (["method=semanticfl", IMAGES], "semanticfl has nothing"),
        (
            ["method=fedavg", IMAGES, "guidance@method.client.guidance=semanticfl"],
            "guidance.name=semanticfl has no form",
        ),
        (["method=feddifrc", IMAGES, "method.client.guidance.feddifrc.replay=1"], "feddifrc.replay=1.0 has no form"),
    ],
)
def test_what_has_no_form_for_segmentation_is_refused_in_one_line(overrides, message, toy_conf):
    with pytest.raises(SettingsError, match=message) as caught:
        preflight.validate(toy_conf("clients.task=segmentation", *overrides))
    assert "\n" not in str(caught.value)
