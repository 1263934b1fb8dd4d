"""FedCR: products of Gaussians, the bottleneck and the draws by hand; what an upload has; bad Gaussians are named."""

import pytest
import torch
from torch.distributions import Normal
from torch.nn.functional import cross_entropy

from client_app.batches import ClientError
from client_app.methods.averaging.fedcr import FedCRClient, FedCRClientSettings, deviations
from client_app.methods.averaging.fedrep import HEAD
from florilegium.learning.fit import LearningRate
from florilegium.protocol.payloads import Weights
from strategies.averaging.fedcr import COUNTS, DEVIATIONS, MEANS, FedCR, FedCRSettings, product
from tests.fakes import FakeResources
from tests.toy_federation import CLASSES, WIDTH, ToyClient, ToyFederation, classifier, rounds

STEPS = {"batch": 8, "learning_rate": LearningRate(0.1), "momentum": 0.0, "weight_decay": 0.0}


def test_the_product_of_gaussians_by_hand():
    """Class 0: N(2, 1/2) and N(-1, 1) and the prior N(0, 1): precision 4 + 1 + 1, mean (8 - 1) / 6. Class 1 has one
    client, N(3, 1): precision 2, mean 1.5. Class 2 has nobody: the prior."""
    means = [torch.tensor([[2.0], [3.0], [9.0]]), torch.tensor([[-1.0], [9.0], [9.0]])]
    spreads = [torch.tensor([[0.5], [1.0], [1.0]]), torch.tensor([[1.0], [0.1], [1.0]])]
    found = product(means, spreads, [torch.tensor([5.0, 1, 0]), torch.tensor([1.0, 0, 0])])
    assert found[MEANS].flatten().tolist() == pytest.approx([7 / 6, 1.5, 0.0])
    assert found[DEVIATIONS].flatten().tolist() == pytest.approx([6**-0.5, 2**-0.5, 1.0])


def test_the_gaussians_of_a_client_by_hand(tmp_path):
    """A class's Gaussian is the product of those of its rows: precisions add up, means count by precision."""
    client = ToyClient(0, tmp_path, 7)
    half = FedCRClient(FedCRClientSettings(**STEPS))
    spread = half.spread(client)
    found = half.experts(client, spread)
    z, sigma = client.encoded(client.x), deviations(spread, client.encoded(client.x))
    mine = client.labels == 1
    precision = (sigma[mine] ** -2).sum(0)
    assert found[COUNTS].tolist() == [4, 3]
    assert torch.allclose(found[DEVIATIONS][1], precision**-0.5, rtol=1e-4)
    assert torch.allclose(found[MEANS][1], (z[mine] * sigma[mine] ** -2).sum(0) / precision, rtol=1e-4, atol=1e-5)


def test_the_bottleneck_by_hand(tmp_path):
    """One step of size 0: beta times 1/2 sum [s^2/q^2 + (m - z)^2/q^2 - 1 + 2 log(q/s)], q the row's deviation."""
    still = FedCRClientSettings(
        batch=64, local_epochs=1, learning_rate=LearningRate(0.0), weight_decay=0.0, bottleneck=2.0
    )
    half, client = FedCRClient(still), ToyClient(0, tmp_path)
    start = half.train(client, Weights({})).tensors
    means, s = torch.tensor([[1.0, 0, 0, 0], [0.0, -1, 0, 0]]), torch.full((CLASSES, WIDTH), 0.5)
    up = half.train(client, Weights(start | {MEANS: means, DEVIATIONS: s}))
    z = client.encoded(client.x)
    q = deviations(half.spread(client), z).detach()
    m = means[client.labels]
    kl = 0.5 * (0.25 / q**2 + (m - z) ** 2 / q**2 - 1 + 2 * (q / 0.5).log()).sum(-1).mean()
    assert up.metrics["bottleneck"] == pytest.approx(2 * kl.item(), rel=1e-4)


def test_the_task_is_the_mean_over_draws(tmp_path):
    """Many draws: the loss is the expected cross-entropy under the row's Gaussian, and above that of its mean."""
    given = {"batch": 64, "local_epochs": 1, "learning_rate": LearningRate(0.0), "weight_decay": 0.0, "bottleneck": 0.0}
    half, client = FedCRClient(FedCRClientSettings(**given, draws=4000)), ToyClient(0, tmp_path)
    start = half.train(client, Weights({})).tensors
    prior = {MEANS: torch.zeros(CLASSES, WIDTH), DEVIATIONS: torch.ones(CLASSES, WIDTH)}
    up = half.train(client, Weights(start | prior))
    z = client.encoded(client.x)
    drawn = Normal(z, deviations(half.spread(client), z).detach()).sample((4000,))
    logits = client.logits(drawn.flatten(0, 1))
    expected = cross_entropy(logits, client.labels.repeat(4000)).item()
    assert up.metrics["task"] == pytest.approx(expected, rel=0.03)
    assert up.metrics["task"] > cross_entropy(client.logits(z), client.labels).item()
    assert "bottleneck" not in up.metrics


def test_rounds_and_bytes(tmp_path):
    """An upload is the model without its head, a map of D (D + 1), and C (2 D + 1) values of Gaussians."""
    half, strategy = FedCRClient(FedCRClientSettings(**STEPS, draws=3)), FedCR(FedCRSettings(), FakeResources())
    federation = ToyFederation(half, tmp_path, (8, 24))
    metrics = rounds(strategy, federation, 2)
    assert not federation.faults and metrics[-1]["train/bottleneck"] > 0
    plain = {n: v for n, v in classifier().state_dict().items() if not n.startswith(HEAD)}
    assert strategy.weights[MEANS].abs().sum() > 0 and (strategy.weights[DEVIATIONS] < 1).all()
    up = half.train(ToyClient(0, tmp_path / "again"), Weights(dict(strategy.weights)))
    beside = sum(v.numel() for n, v in up.tensors.items() if n not in plain)
    assert beside == WIDTH * (WIDTH + 1) + CLASSES * (2 * WIDTH + 1)
    assert strategy.judged_model()(federation.clients[0]).tensors.keys() == plain.keys()


def test_a_class_of_nobody_keeps_its_gaussian(tmp_path):
    """The rate moves a Gaussian half of the way; class 1 of nobody stays where it is."""
    strategy = FedCR(FedCRSettings(rate=0.5), FakeResources())
    one_class = {COUNTS: torch.tensor([16.0, 0.0])}

    def tamper(k, up):
        return Weights(up.tensors | one_class, up.examples, up.metrics) if up.metrics else up

    federation = ToyFederation(FedCRClient(FedCRClientSettings(**STEPS)), tmp_path, (16,), tamper=tamper)
    rounds(strategy, federation, 1)
    assert strategy.weights[DEVIATIONS][1].tolist() == [1.0] * WIDTH
    assert all(0.5 < d < 1 for d in strategy.weights[DEVIATIONS][0].tolist())


def test_bad_gaussians_are_named(tmp_path):
    def tamper(k, up):
        if k == 0 or not up.metrics:
            return up
        return Weights(up.tensors | {DEVIATIONS: torch.zeros(CLASSES, WIDTH)}, up.examples, up.metrics)

    federation = ToyFederation(FedCRClient(FedCRClientSettings(**STEPS)), tmp_path, tamper=tamper)
    rounds(FedCR(FedCRSettings(), FakeResources()), federation, 1)
    assert federation.faults == [(1, f"Weights.tensors[{DEVIATIONS}] has a deviation that is not positive")]
    client = ToyClient(0, tmp_path / "client")
    half = FedCRClient(FedCRClientSettings(**STEPS))
    start = half.train(client, Weights({})).tensors
    with pytest.raises(ClientError, match="the server sent no Gaussians of 2 classes, 4 wide"):
        half.train(client, Weights(start))
    assert sum(v.numel() for n, v in start.items() if n.startswith("spread")) == WIDTH * (WIDTH + 1)
