"""A client with one row: every method of the catalogue trains with it to the end."""

import pytest

from florilegium.catalogue import CATALOGUE
from tests.field.inputs import put
from tests.local_grid import FIRST_NODE, LocalGrid
from tests.test_every_method import SMALL, faults, lines
from tests.tiers import first

WITH_CLIENTS = [name for name, entry in CATALOGUE.items() if entry.client]


def members(method):
    """Two clients of each modality that a method serves; of one architecture where it averages weights."""
    models = {"image": "resnet", "text": "bert", "pair": "resnet+bert"}
    entry = CATALOGUE[method]
    those = ["image"] if entry.one_architecture else [name for name in models if name in entry.modalities]
    return [f"{{modality: {modality}, model: {models[modality]}}}" for modality in those for _ in range(2)]


@pytest.mark.parametrize("method", first(WITH_CLIENTS, 5))
def test_a_client_with_one_row_takes_part(method, toy_conf, federated, tmp_path, monkeypatch):
    put(tmp_path / "own" / "disc.png", 3)
    put(tmp_path / "own" / "metadata.jsonl", [{"file_name": "disc.png", "text": "a red disc", "label": "disc"}])
    mix, opened = members(method), LocalGrid.__init__

    def with_one_row(self, *args, **how):
        opened(self, *args, **how)
        for client in range(1, len(mix), 2):
            self.contexts[FIRST_NODE + client].node_config["data-path"] = str(tmp_path / "own")

    monkeypatch.setattr(LocalGrid, "__init__", with_one_row)
    small = ["evaluation.images_per_class=2", *SMALL.get(method, []), "rounds=1"]
    run = federated(toy_conf(f"method={method}", f"clients.mix=[{','.join(mix)}]", *small))
    assert not faults(run) and [line["round"] for line in lines(run)] == [0, 1]
