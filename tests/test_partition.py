"""The splits of the weight-averaging papers: their published facts, hand-worked counts, domain shift, cohorts."""

import json
import math

import numpy as np
import pytest
import torch

from client_app.evaluation import evaluate
from client_app.opening import open_client
from florilegium.catalogue import CATALOGUE, side
from florilegium.config import composition
from florilegium.config.data import PartitionSettings
from florilegium.data import shift, skew
from florilegium.data.datasets import DataError, open_dataset
from florilegium.data.partition import KEPT, deal, dealt, keep, partition
from florilegium.data.private import open_private
from florilegium.protocol.codec import Header
from tests.test_every_method import toy
from tests.tiers import first

CIFAR10 = np.repeat(np.arange(10), 5000)
PRESETS = sorted(path.stem for path in (composition.CONF / "partition").glob("*.yaml"))


def counts(parts, labels=CIFAR10, classes=10):
    return np.stack([np.bincount(labels[part], minlength=classes) for part in parts])


def disjoint(parts):
    return len(np.unique(np.concatenate(parts))) == sum(map(len, parts))


def random(seed=0):
    return np.random.default_rng(seed)


# -- the splits --------------------------------------------------------------------------------------------------------


def test_effective_classes_by_hand():
    found = skew.effective_classes(np.array([[4, 0], [2, 2], [3, 1]]))
    assert found == pytest.approx([1, 2, 4 / 27**0.25])  # exp(-(3/4 ln 3/4 + 1/4 ln 1/4)) = 4 / 3^(3/4)


@pytest.mark.parametrize(("alpha", "classes"), [(0.05, 2.94), (0.2, 4.16), (0.5, 5.64)])
def test_the_released_dirichlet_form_is_balanced_and_milder_than_its_alpha(alpha, classes):
    """The method document's means of five seeds; one seed spreads by 0.2 to 0.35."""
    found = []
    for seed in range(8):
        parts = skew.grouped_balanced(CIFAR10, 10, alpha, 5, random(seed))
        assert [len(part) for part in parts] == [5000] * 10 and disjoint(parts)
        found.append(skew.effective_classes(counts(parts)).mean())
    assert np.mean(found) == pytest.approx(classes, abs=0.35)


@pytest.mark.parametrize(("alpha", "classes"), first([(0.05, 2.02), (0.2, 3.67), (0.5, 5.24)]))
def test_the_plain_dirichlet_form_has_the_papers_effective_classes(alpha, classes):
    from datasets import Dataset

    table = Dataset.from_dict({"id": list(range(50_000)), "label": CIFAR10.tolist()})
    found = []
    for seed in range(6):
        s = PartitionSettings(alpha=alpha, self_balancing=True)
        parts = [np.array(dealt["rows"]) for dealt in deal(table, 10, s, "image", seed, 10)]
        assert disjoint(parts) and sum(map(len, parts)) == 50_000
        found.append(skew.effective_classes(counts(parts)).mean())
    assert np.mean(found) == pytest.approx(classes, abs=0.35)


def test_groups_keep_to_themselves_but_for_the_cut():
    """Four clients in groups of two: the first two have exactly the rows of the first group."""
    labels = np.repeat(np.arange(4), 50)
    parts = skew.grouped_balanced(labels, 4, 1.0, 2, random(3))
    order = random(3).permutation(200)  # the same first draw
    assert set(np.concatenate(parts[:2])) == set(order[:100].tolist())
    again = skew.grouped_balanced(labels, 4, 1.0, 2, random(3))
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))


def test_a_dirichlet_that_cannot_be_balanced_is_refused():
    with pytest.raises(skew.SkewError, match="alpha: none of 2000 draws with 0.001"):
        skew.grouped_balanced(np.repeat([0, 1], 20), 5, 0.001, 5, random())


def test_nid2_is_feddiscos_on_cifar10():
    """5 biased + 1 unbiased: 5000 // 6 = 833 rows a class and client; 5 * 833 = 4165 of each of two classes."""
    parts = skew.biased_unbiased(CIFAR10, 10, 5, 2, 1, random())
    expected = np.zeros((6, 10), dtype=int)
    for i in range(5):
        expected[i, [2 * i, 2 * i + 1]] = 4165
    expected[5] = 833
    assert (counts(parts) == expected).all() and disjoint(parts)  # 8,330 each


@pytest.mark.parametrize(
    ("classes", "rows", "biased", "each", "size"),
    [
        (100, 500, 5, 20, 20 * 83 * 5),  # CIFAR-100: client i holds 20i..20i+19
        (24, 60, 6, 4, 4 * 8 * 6),  # 60 // 7 = 8 rows a class and client
        (10, 1200, 9, 2, 1080),  # ten clients: two holders of classes 0-7, so 120 * 9 / 2 of each of two
    ],
)
def test_nid2_has_equal_sizes_and_its_class_sets(classes, rows, biased, each, size):
    labels = np.repeat(np.arange(classes), rows)
    parts = skew.biased_unbiased(labels, classes, biased, each, 1, random())
    found = counts(parts, labels, classes)
    assert found.sum(1).tolist() == [size] * (biased + 1) and disjoint(parts)
    for i in range(biased):
        assert set(np.flatnonzero(found[i])) == {(i * each + j) % classes for j in range(each)}
    assert (found[-1] > 0).all()


@pytest.mark.parametrize(("clients", "held"), [("ten", 5), ("image", 8)])
@pytest.mark.filterwarnings("ignore:no .* client has a row")
def test_nid2_of_emoji_leaves_no_class_to_the_unbiased_client_alone(clients, held):
    """A fifth of 24 classes is 5; of three biased clients each needs 8. The 24 classes have unequal rows."""
    conf = composition.compose([f"clients={clients}", "data=emoji", "partition@clients.partition=nid2"])
    found = np.array([list(client["classes"].values()) for client in partition(conf)["clients"]])
    assert ((found[:-1] > 0).sum(1) == held).all() and (found[:-1].sum(0) > 0).all() and len(set(found.sum(1))) == 1


def test_unequal_classes_cut_everybody_to_the_smallest():
    labels = np.array([0] * 40 + [1] * 8)  # 2 biased of one class, 1 unbiased: 13 and 2 rows a share
    found = counts(skew.biased_unbiased(labels, 2, 2, 1, 1, random()), labels, 2)
    assert found.sum(1).tolist() == [4] * 3 and found[0].tolist() == [4, 0] and found[1].tolist() == [0, 4]


def test_a_long_tail_has_cifar_lts_counts():
    kept = skew.long_tail(CIFAR10, 10, 0.1, random())
    assert np.bincount(CIFAR10[kept]).tolist() == [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500]
    assert (np.diff(kept) > 0).all()
    few = skew.long_tail(np.array([0] * 2 + [1] * 10), 2, 0.5, random())  # N/C = 6: both rows of 0, three of 1
    assert few.tolist()[:2] == [0, 1] and len(few) == 5


def test_clients_of_one_domain_share_it_equally():
    values = ["b", "a", "a", "b", "a", "a", "c"]
    parts = skew.by_domain(values, ["a", "b", "a"], random())
    assert sorted(np.concatenate([parts[0], parts[2]])) == [1, 2, 4, 5] and [len(p) for p in parts] == [2, 2, 2]
    assert sorted(parts[1]) == [0, 3]


# -- as settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.filterwarnings("ignore:no .* client has a row")
def test_every_preset_deals_to_ten_clients(preset):
    data = "emoji" if preset == "domain" else "fashion"
    conf = composition.compose(["clients=ten", f"data={data}", f"partition@clients.partition={preset}"])
    dealt = partition(conf)
    rows = [client["rows"] for client in dealt["clients"]]
    assert conf.cohort.fraction == 0.5 and len(rows) == 10 and len({i for r in rows for i in r}) == sum(map(len, rows))
    assert all(sum(client["classes"].values()) == len(client["rows"]) for client in dealt["clients"])
    assert json.loads(json.dumps(dealt)) == dealt


def test_a_client_gets_its_own_part_and_its_rows_in_that_order(toy_conf):
    conf = toy_conf("method=standalone")
    whole = partition(conf)
    for k, member in enumerate(conf.clients.mix):
        mine, settings = dealt(conf, k)
        assert mine == whole["clients"][k] and settings == whole["settings"]
        assert open_private(conf, k, member.modality, {}).train.ids.tolist() == mine["rows"]
        mine["rows"].clear()  # a copy: the next who asks has them
    assert partition(conf) == whole


def test_processes_of_a_launch_read_what_its_launcher_has_dealt(toy_conf, tmp_path, monkeypatch):
    conf, other = toy_conf("method=standalone"), toy_conf("method=standalone", "out=elsewhere")
    whole = partition(conf)
    keep(conf, tmp_path)
    (kept,) = tmp_path.iterdir()
    marked = {**whole, "hash": "it was read"}
    kept.write_text(json.dumps(marked))
    assert partition(conf) == whole  # the launcher's environment names no folder
    monkeypatch.setenv(KEPT, str(tmp_path))
    assert partition(conf) == marked and dealt(conf, 0)[0] == whole["clients"][0]
    assert partition(other) == whole  # of another run: it is dealt
    monkeypatch.setenv(KEPT, str(tmp_path / "gone"))
    assert partition(conf) == whole


def test_a_long_tail_comes_before_the_split():
    conf = composition.compose(["clients=ten", "data=fashion", "clients.partition.imbalance=0.1"])
    total = np.array([list(client["classes"].values()) for client in partition(conf)["clients"]]).sum(0)
    assert total.tolist() == [math.floor(1200 * 0.1 ** (c / 9) + 1e-9) for c in range(10)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["name=biased_unbiased", "biased=4", "unbiased=2"],
            "clients.partition.biased: 4 biased and 2 unbiased clients are not the 10 there are",
        ),
        (
            ["name=biased_unbiased", "classes_per_biased=11"],
            "clients.partition.classes_per_biased is 11, but there are 10",
        ),
        (["name=domain"], "clients.partition.by: the data have no column 'style'"),
        (["imbalance=0"], "clients.partition: imbalance must lie between"),
        (["shift=blur"], "clients.partition: shift must be one of none, rotation, contrast"),
    ],
)
def test_what_cannot_be_dealt_names_its_key(overrides, message):
    with pytest.raises(ValueError) as caught:  # a wrong value by itself is named when the settings are composed
        partition(composition.compose(["clients=ten", "data=fashion", *(f"clients.partition.{o}" for o in overrides)]))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        ("[twemoji]", "clients.partition.domains names 1 domains for 4 clients"),
        (
            "[twemoji,twemoji,noto,openmoji]",
            "clients.partition.domains: no style 'noto'; there are emojione, fluent-flat",
        ),
    ],
)
def test_domains_that_are_not_there_are_refused(domains, message):
    with pytest.raises(DataError, match=message):
        partition(
            composition.compose(
                [
                    "data=emoji",
                    "clients=image",
                    "partition@clients.partition=domain",
                    f"clients.partition.domains={domains}",
                ]
            )
        )


def test_text_clients_have_no_domain_shift():
    with pytest.raises(DataError, match="domain shift is of images"):
        partition(composition.compose(["clients=mixed", "partition@clients.partition=domain"]))


# -- domain shift ------------------------------------------------------------------------------------------------------


def test_a_quarter_turn_and_half_the_contrast_by_hand():
    image = torch.tensor([[0, 255], [100, 200]], dtype=torch.uint8).expand(1, 3, 2, 2)
    assert shift.rotated(image, 90)[0, 0].tolist() == [[255, 200], [0, 100]]  # anti-clockwise: the right column on top
    assert torch.equal(shift.rotated(image, 360), image) and shift.rotated(image, 180)[0, 0, 0].tolist() == [200, 100]
    assert shift.flattened(image, 0.5)[0, 0].tolist() == [[64, 191], [114, 164]]  # 127.5 + (x - 127.5) / 2, rounded
    assert [shift.amount("rotation", 3, 15, 0.8), shift.amount("contrast", 2, 15, 0.5)] == [45, 0.25]


def test_each_client_draws_in_its_own_style_and_is_judged_on_it():
    conf = composition.compose(
        [
            "clients=image",
            "data=emoji",
            "partition@clients.partition=domain",
            "clients.partition.domains=[openmoji,twemoji,openmoji,emojione]",
        ]
    )
    clients = partition(conf)["clients"]
    assert [client["domain"] for client in clients] == ["openmoji", "twemoji", "openmoji", "emojione"]
    assert abs(len(clients[0]["rows"]) - len(clients[2]["rows"])) <= 1
    splits = open_dataset(conf.data)
    style = {
        i: name
        for split in ("train", "test")
        for i, name in zip(getattr(splits, split)["id"][:], getattr(splits, split)["style"][:], strict=True)
    }
    for k, client in enumerate(clients):
        data = open_private(conf, k, "image", {})
        assert {style[i] for i in data.train.ids.tolist()} == {client["domain"]}
        assert {style[i] for i in data.test.ids.tolist()} == {client["domain"]}
        assert len(data.test.images) == len(data.test.labels) == len(data.test)
    conf.clients.partition.judged = "all"
    assert len(open_private(conf, 0, "image", {}).test) == 572


def test_a_rotation_turns_what_a_client_learns_and_what_it_is_judged_on(toy_conf):
    overrides = (
        "clients.mix=[{modality:image,model:resnet},{modality:image,model:resnet}]",
        "clients.partition.rotation=90",
    )
    flat = [open_private(toy_conf(*overrides), k, "image", {}) for k in range(2)]
    turned = [open_private(toy_conf(*overrides, "clients.partition.shift=rotation"), k, "image", {}) for k in range(2)]
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(turned[0], split).images, getattr(flat[0], split).images)
        assert torch.equal(getattr(turned[1], split).images, getattr(flat[1], split).images.rot90(1, (-2, -1)))
    conf = toy_conf(*overrides, "clients.partition.shift=rotation", "clients.partition.judged=all")
    plain = open_private(conf, 1, "image", {})
    assert torch.equal(plain.test.images, flat[1].test.images)
    assert torch.equal(plain.train.images, turned[1].train.images)
    assert [client["shift"] for client in partition(conf)["clients"]] == [0, 90]


# -- partial participation ---------------------------------------------------------------------------------------------


def test_every_method_meets_the_same_cohorts(toy_conf, federated):
    """Four clients, two a round: who trains in a round depends on the seed alone."""
    met = {}
    for method in ("standalone", "fedavg", "fedmmkt"):
        assert method in CATALOGUE and side(method, "client")
        conf = toy(
            toy_conf,
            method,
            "rounds=2",
            "cohort.fraction=0.5",
            "references=none",
            "clients.mix=[{modality:image,model:resnet},{modality:image,model:resnet},"
            "{modality:image,model:resnet},{modality:image,model:resnet}]",
        )
        conf.out += method
        conf.clients.state_dir = conf.out + "/state"
        entries = [json.loads(line) for line in (federated(conf) / "ledger.jsonl").read_text().splitlines()]
        met[method] = [
            sorted({e["client"] for e in entries if e["round"] == r and e["phase"] == "train"}) for r in (1, 2)
        ]
    assert met["standalone"] == met["fedavg"] == met["fedmmkt"] and all(len(cohort) == 2 for cohort in met["fedavg"])


def test_a_client_says_it_is_judged_on_its_own_rows(toy_conf):
    conf = toy_conf(
        "clients.mix=[{modality:image,model:resnet}]",
        "clients.partition.name=domain",
        "clients.partition.domains=[red]",
    )
    client = open_client(conf, {"partition-id": 0}, Header("method", 0, 1))
    red = open_dataset(conf.data).test["style"][:].count("red")
    assert evaluate(client).examples == red


def test_texts_alone_go_to_text_clients_and_pictures_to_the_others():
    """The lexicon's column `modality`: 3 image, 3 text and 4 pair clients hold rows of their kind, and no row twice."""
    conf = composition.compose(["data=lexicon", "clients=paper_mixed"])
    train = open_dataset(conf.data).private("train").select_columns(["id", "modality", "concept"])
    kind = dict(zip(train["id"][:], train["modality"][:], strict=True))
    concept = dict(zip(train["id"][:], train["concept"][:], strict=True))
    held = [(client["modality"], client["rows"]) for client in partition(conf)["clients"]]
    for modality, rows in held:
        assert {kind[row] for row in rows} == {"text" if modality == "text" else "pair"}
    together = [row for _, rows in held for row in rows]
    assert len(together) == len(set(together)) == len(kind)
    image, pair = ({concept[r] for m, rows in held for r in rows if m == wanted} for wanted in ("image", "pair"))
    assert image and pair and not image & pair
