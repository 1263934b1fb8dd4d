"""The committed backbones: small pre-trained encoders that the code of full-size ones loads."""

import pytest
import torch

from florilegium.config.composition import compose
from florilegium.data.datasets import held_out
from florilegium.models.build import ARCHITECTURES, ModelError, body, build, vocabulary

KINDS = [(modality, kind) for modality, kinds in ARCHITECTURES.items() for kind in kinds]
CLASSES = 12


def clients(*changes):
    return compose(["data=lexicon", "clients=eight", *changes]).clients


def reads(conf, modality, kind):
    return vocabulary(conf, kind) if modality == "text" else None


@pytest.mark.parametrize("modality, kind", KINDS)
def test_a_client_starts_from_the_committed_weights_in_float32(modality, kind):
    conf, nets = clients(), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        nets.append(body(conf, modality, kind, reads(conf, modality, kind)).net)
    first, second = (net.state_dict() for net in nets)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {value.dtype for value in first.values() if value.is_floating_point()} == {torch.float32}
    assert sum(value.numel() for value in nets[0].parameters()) < 1_200_000


@pytest.mark.parametrize("modality, kind", KINDS)
def test_from_scratch_is_a_setting_and_draws_other_weights(modality, kind):
    conf = clients("architectures@clients.architectures=small")
    torch.manual_seed(0)
    first = body(conf, modality, kind, reads(conf, modality, kind)).net
    torch.manual_seed(1)
    second = body(conf, modality, kind, reads(conf, modality, kind)).net
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    if modality == "image":  # the same net, layer for layer
        kept = body(clients(), modality, kind).net
        assert {k: v.shape for k, v in kept.state_dict().items()} == {k: v.shape for k, v in first.state_dict().items()}


@pytest.mark.parametrize("modality, kind", KINDS)
def test_like_things_lie_together_before_any_training(modality, kind):
    """One neighbour among 300 held-out rows is of the same class far more often than chance (1 in 12)."""
    conf = compose(["data=lexicon", "clients=eight"])
    rows = held_out(conf.data, "validation", modality)
    model = build(conf.clients, modality, kind, CLASSES, words := reads(conf.clients, modality, kind)).eval()
    x = words(rows.texts) if modality == "text" else rows.images / 127.5 - 1
    with torch.no_grad():
        z = torch.nn.functional.normalize(model.body(x), dim=1)
    closest = (z @ z.T).fill_diagonal_(-1).argmax(1)
    assert (rows.labels[closest] == rows.labels).float().mean() > 0.3


def test_a_backbone_that_is_not_there_is_one_clear_line():
    conf = clients()
    conf.architectures["bert"]["pretrained"] = "backbones/birt"
    with pytest.raises(ModelError, match="clients.architectures.bert: no asset models/backbones/birt"):
        body(conf, "text", "bert", vocabulary(clients(), "bert"))
