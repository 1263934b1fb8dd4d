"""FedMMKT with clients of pairs: what both towers say and represent, by hand; what they learn; a whole run."""

import math
from types import SimpleNamespace

import pytest
import torch

from client_app.batches import ClientError
from client_app.blocks.zero_shot import class_scores, learn, seen, together
from client_app.client import Client
from client_app.distillation_set import DistillationSet, Kept, from_tensors, to_tensors
from client_app.memory import Memory
from florilegium.data.private import open_private
from florilegium.federation.federation import FederationError
from florilegium.learning.fit import LearningRate
from florilegium.methods.fedmmkt.costs import modelled
from florilegium.protocol import pixels
from florilegium.protocol.payloads import Samples
from florilegium.runs.reader import read_lines

MIX = (
    "clients.mix=[{modality: image, model: resnet}, {modality: text, model: bert},"
    " {modality: pair, model: resnet+bert}]"
)


@pytest.fixture
def client(toy_conf, tmp_path):
    conf = toy_conf("method=fedmmkt", MIX)
    return Client(conf, 2, open_private(conf, 2, "pair", {}), Memory(tmp_path / "memory", 1, 1), 1)


def both(count=6):
    images = torch.randint(0, 256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Samples(
        torch.arange(count), tuple(pixels.encode(images, "png")), ("a red disc", "a blue cross") * (count // 2)
    )


def test_the_scores_are_cosines_with_the_prompts():
    """Prompts along x and y, tau = 1/2: the image along x, the text between them."""
    towers = torch.tensor([[[1.0, 0.0]], [[0.6, 0.8]]])
    scores = class_scores(towers, torch.eye(2), 0.5)
    assert scores.tolist() == [[[2.0, 0.0]], [[pytest.approx(1.2), pytest.approx(1.6)]]]
    z = together(torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]))
    assert torch.allclose(z, torch.tensor([[1.0, -1.0]]), atol=1e-4)  # (2, 0) on the common scale


def test_a_class_that_both_towers_rule_out_has_a_finite_score(client, monkeypatch):
    """A cold temperature: exp(-500) is 0 in float32, and the logarithm of a mean of zeros would be refused."""
    told = torch.tensor([[0.0, -500.0]]).expand(2, 6, 2)
    monkeypatch.setattr("client_app.blocks.zero_shot.class_scores", lambda *given: told)
    assert seen(client, client.open_samples(both()))[0].tolist() == [[0.0, -500.0]] * 6


def test_what_is_said_is_the_mean_of_both_towers(client):
    kept = client.open_samples(both())
    log_p, z = seen(client, kept)
    assert torch.allclose(log_p.exp().sum(1), torch.ones(6), atol=1e-5) and z.shape == (6, client.width)
    model, tau = client.retriever, client.conf.clients.pair.temperature
    with torch.no_grad():
        names = client.vocabulary([f"A picture of a {name}." for name in client.data.classes])
        prompts = model.encode_text(names)
        image = model.encode_image(pixels.scaled(kept.images)) @ prompts.T / tau
        text = model.encode_text(client.vocabulary(kept.texts)) @ prompts.T / tau
    assert torch.allclose(log_p.exp(), (image.softmax(-1) + text.softmax(-1)) / 2, atol=1e-5)


def test_both_sides_are_kept_and_found_again(client):
    kept = client.open_samples(both())
    again = from_tensors(to_tensors(kept))
    assert torch.equal(again.images, kept.images) and again.texts == kept.texts
    assert from_tensors(to_tensors(Kept(torch.arange(1), texts=("a disc",)))).images.shape[0] == 0
    with pytest.raises(ClientError, match="reads pairs; it was sent 0 images and 1 texts for 1 ids"):
        client.open_samples(Samples(torch.arange(1), texts=("a disc",)))


def test_labels_and_alignment_move_both_towers(client):
    """Forty passes over six samples of two classes of four: both towers change, and no other class is said."""
    before = {name: value.clone() for name, value in client.retriever.state_dict().items()}
    distillation = DistillationSet(client.open_samples(both()), torch.tensor([0, 3] * 3), torch.zeros(6, client.width))
    given = SimpleNamespace(
        batch=6, distill_epochs=40, learning_rate=LearningRate(pair=0.01), weight_decay=0.0, mix_private=False
    )
    told = learn(client, given, distillation, lambda fused, z: 0.01 * (fused - z).square().mean())
    assert set(told) >= {"label", "pair", "align"} and "private" not in told
    assert seen(client, distillation.samples)[0].exp()[:, [0, 3]].sum(1).min() > 0.9  # a half before
    moved = [name for name, value in client.retriever.state_dict().items() if not torch.equal(value, before[name])]
    assert any(name.startswith("image.") for name in moved) and any(name.startswith("text.") for name in moved)


def test_bytes_of_a_client_that_reads_both():
    """An image, a text and a pair client: (12,288 + 240 + 12,528) / 3 bytes a sample, a label and 768 values."""
    given = (800, 1, 1, 102, 768, 12_288, 240)
    down = modelled(*given, pair_clients=1)["down"]
    assert down == 800 * (2 * (12_288 + 240) / 3 + 4 + 4 * 768)
    assert modelled(*given, pair_clients=1)["up"] == modelled(*given)["up"]  # one vote and one vector a sample


SMALL = (
    "method.server.samples=12",
    "tuning.batch=8",
    "method.client.pretrain_epochs=1",
    "evaluation.images_per_class=2",
)


def test_a_run_in_which_a_client_of_pairs_votes_and_learns(toy_conf, federated):
    out = federated(toy_conf("method=fedmmkt", MIX, "rounds=1", "method.client.distill_epochs=1", *SMALL))
    ledger, last = read_lines(out / "ledger.jsonl"), read_lines(out / "rounds.jsonl")[-1]["metrics"]
    assert not [entry["fault"] for entry in ledger if entry["fault"]]
    assert 0 <= last["labels/client_2_agrees"] <= 1
    weights = [last[f"fusion/weight_{k}"] for k in range(3)]
    assert sum(weights) == pytest.approx(1, abs=1e-4) and weights[2] > 0
    assert math.isfinite(last["client/rsum/pair"])


def test_the_one_modality_form_refuses_clients_of_pairs(toy_conf, federated):
    with pytest.raises(FederationError, match="variant=unimodal serves clients of one modality"):
        federated(toy_conf("method=fedmmkt", MIX, "method.variant=unimodal", *SMALL))
