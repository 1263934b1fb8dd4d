"""DisentAFL: experts and gates by hand, which experts a client owns, who averages them, what stays."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from client_app.batches import ClientError
from client_app.blocks.modules import Adapter
from client_app.methods.modules.disentafl import DisentAFLClient, DisentAFLClientSettings, Experts
from florilegium.federation.federation import Client as Known
from florilegium.federation.federation import Reply
from florilegium.learning.fit import LearningRate
from florilegium.protocol.payloads import Adapters
from strategies.modules.averaged_modules import AveragedModules, AveragedModulesSettings
from tests.toy_federation import WIDTH, ToyClient, ToyFederation, rounds, same

OWN = {"pretrain_epochs": 1, "local_epochs": 1, "batch": 8, "learning_rate": LearningRate(0.01), "reduction": 2}
KEYS = ["shared.shared", "shared.classification", "image.shared", "image.classification"]


def expert(down, up):
    """One number in, one hidden, one out."""
    made = Adapter(1, 1)
    for p, value in zip(made.parameters(), (down, 0.0, up, 0.0), strict=True):
        p.data.fill_(value)
    return made


def test_experts_and_gates_by_hand():
    """z = 2, experts that say 1, 2, 3 and 4 times z. The first gate gives the shared ones 3/4; in each half the second
    gives the task's own 2/3: 3/4 (1/3 * 1 + 2/3 * 2) + 1/4 (1/3 * 3 + 2/3 * 4) = 13/6."""
    experts = dict(zip(KEYS, (expert(1.0, n) for n in (1.0, 2.0, 3.0, 4.0)), strict=True))
    found = Experts("image", "classification", 1, experts)
    assert found(torch.tensor([[2.0]])).item() == pytest.approx(2 + 2 * 2.5)  # equal gates: the mean of all
    log = torch.tensor
    found.modality_gate.bias.data = log([3.0, 1.0]).log()
    found.task_gate.bias.data = log([1.0, 2.0, 1.0, 2.0]).log()
    assert found(torch.tensor([[2.0]])).item() == pytest.approx(2 + 2 * 13 / 6)


def test_the_overlap_by_hand():
    """Hidden vectors along x, x, y and the diagonal: squared cosines 1, 0, 1/2, 0, 1/2, 1/2, mean 5/12."""
    experts = {key: Adapter(2, 2) for key in KEYS}
    for made, (a, b) in zip(experts.values(), ((1, 0), (3, 0), (0, 2), (1, 1)), strict=True):
        made.down.weight.data = torch.tensor([[float(a), 0.0], [float(b), 0.0]])
        made.down.bias.data.zero_()
    found = Experts("image", "classification", 2, experts)
    found(torch.tensor([[1.0, 0.0], [-2.0, 0.0]]))
    assert found.overlap().item() == pytest.approx(5 / 12)


def test_a_start_says_nothing_and_is_the_same_at_all_clients(tmp_path):
    half = DisentAFLClient(DisentAFLClientSettings(**OWN))
    clients = [ToyClient(k, tmp_path) for k in (0, 1)]
    before = {name: value.clone() for name, value in clients[0].model.state_dict().items()}
    a, b = (half.train(client, Adapters({})) for client in clients)
    assert same(a.tensors, b.tensors, atol=0) and not a.metrics
    assert {name.rsplit(".", 2)[0] for name in a.tensors} == set(KEYS)
    assert same(clients[0].model.state_dict(), before, atol=0)
    inner = WIDTH // 2
    assert sum(v.numel() for v in a.tensors.values()) == 4 * (2 * WIDTH * inner + inner + WIDTH)
    clients[0].memory.now = (2, 1)
    still = DisentAFLClient(DisentAFLClientSettings(**OWN | {"batch": 64, "learning_rate": LearningRate(0.0)}))
    up = still.train(clients[0], a)
    clients[0].model.eval()
    assert up.metrics["task"] == pytest.approx(cross_entropy(clients[0].model(clients[0].x), clients[0].labels).item())
    assert 0 < up.metrics["orthogonality"] <= 0.5


def test_an_expert_is_averaged_among_those_who_own_its_key():
    """Equal clients, image 1, text 5 and retrieval 9. All share `shared.shared`: 5. Classification is of two: 3. The
    image side is of the image and of the retrieval client: 5."""
    owners = {
        ("image", "vit"): {"shared.shared": 1.0, "shared.classification": 1.0, "image.shared": 1.0},
        ("text", "bert"): {"shared.shared": 5.0, "shared.classification": 5.0, "text.shared": 5.0},
        ("pair", "clip+clip"): {"shared.shared": 9.0, "image.shared": 9.0, "text.shared": 9.0},
    }
    replies = [
        Reply(
            Known(k, k, *who, 8, (0, 1)), Adapters({f"{key}.up.bias": torch.full((2,), v) for key, v in own.items()}, 8)
        )
        for k, (who, own) in enumerate(owners.items())
    ]
    strategy, nothing = AveragedModules(AveragedModulesSettings()), torch.zeros(2)
    mean = {
        key: strategy.mean("image vit", f"{key}.up.bias", nothing, replies)[0].item() for key in owners["image", "vit"]
    }
    assert mean == {"shared.shared": 5.0, "shared.classification": 3.0, "image.shared": 5.0}
    assert strategy.mean("text bert", "text.shared.up.bias", nothing, replies)[0].item() == 7.0


def test_rounds_train_the_body_and_keep_the_gates(tmp_path):
    half = DisentAFLClient(DisentAFLClientSettings(**OWN | {"local_epochs": 3}))
    strategy, federation = AveragedModules(AveragedModulesSettings()), ToyFederation(half, tmp_path, (8, 24))
    metrics = rounds(strategy, federation, 2)
    assert not federation.faults and metrics[-1]["train/orthogonality"] > 0
    assert not any("gate" in name for name in strategy.weights)
    assert any(v.abs().sum() > 0 for n, v in strategy.weights.items() if ".up.weight" in n)
    client = ToyClient(0, tmp_path, 8, round_=3)
    gates = client.memory.read("modules")[0]
    assert gates["gates.image.task_gate.weight"].abs().sum() > 0
    fresh = ToyClient(0, tmp_path / "other", 8).model.state_dict()
    assert not torch.equal(client.model.state_dict()["body.0.weight"], fresh["body.0.weight"])


def test_experts_of_another_size_are_refused(tmp_path):
    client = ToyClient(0, tmp_path)
    start = DisentAFLClient(DisentAFLClientSettings(**OWN)).train(client, Adapters({}))
    other = DisentAFLClient(DisentAFLClientSettings(**OWN | {"reduction": 1}))
    with pytest.raises(ClientError, match=r"the server's shared.shared.down.weight is \(2, 4\), expected \(4, 4\)"):
        other.train(client, start)
