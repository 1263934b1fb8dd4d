"""The settings of a node: typed and checked before its SuperNode starts, and again by its client."""

import re
import sys
from pathlib import Path

import pytest

from client_app.opening import open_client
from florilegium.cli import main
from florilegium.config.errors import SettingsError
from florilegium.config.node import KEYS, NodeSettings, checked, node_settings
from florilegium.data.own.sources import OwnSettings
from florilegium.protocol.codec import Header
from florilegium.runtime import keys, processes
from tests.field.inputs import two_classes

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("value", ["1000000", 1000000, " 1000000"])
def test_a_number_that_came_as_text_is_a_number(value):
    assert checked({"max-pixels": value}) == {"max-pixels": 1000000}
    assert OwnSettings.of({"data-path": "x", "max-pixels": value}).max_pixels == 1000000


@pytest.mark.parametrize(
    "given, said",
    [
        ({"max-pixel": 5}, "node configuration: no key 'max-pixel' (did you mean 'max-pixels'?)"),
        ({"tets-path": "x"}, "no key 'tets-path' (did you mean 'test-path'?)"),
        ({"max_pixels": 5}, "no key 'max_pixels' (did you mean 'max-pixels'?)"),
        ({"colour": 5}, "no key 'colour'; there are partition-id, client-id"),
        ({"max-pixels": "many"}, "node configuration: max-pixels: Value 'many'"),
        ({"max-pixels": 0}, "node configuration: max-pixels must lie between 1 and"),
        ({"max-pixels": 1.5}, "max-pixels: Value '1.5'"),
        ({"partition-id": -1}, "partition-id must lie between 0"),
        ({"partition-id": "first"}, "partition-id: Value 'first'"),
    ],
)
def test_a_wrong_key_or_value_is_named(given, said):
    with pytest.raises(SettingsError, match=re.escape(said)) as caught:
        node_settings(given)
    assert "\n" not in str(caught.value)


def test_paths_are_absolute_and_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("it's here", "test"):
        Path(name).mkdir()
    given = {"data-path": "it's here", "test-path": "./test", "text-column": 5}
    whole = {"data-path": str(tmp_path / "it's here"), "test-path": str(tmp_path / "test"), "text-column": "5"}
    assert checked(given) == whole
    with pytest.raises(SettingsError, match=f"public-path: there is no {tmp_path}/gone"):
        checked({"public-path": "gone"})


def test_every_key_is_in_the_docs_with_its_default():
    page = (DOCS / "data.md").read_text()
    table = dict(re.findall(r"^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \| (.*?) \|", page, re.MULTILINE))
    documented = {key: default for keys, default in table.items() for key in re.findall(r"[a-z-]+", keys)}
    assert set(KEYS) - {"client-id"} <= set(documented)
    assert documented["max-pixels"] == str(NodeSettings.max_pixels)


def test_the_client_checks_again_where_flower_itself_started_the_node(toy_conf, tmp_path):
    node = {"partition-id": 0, "state-dir": str(tmp_path), "tets-path": "x"}
    with pytest.raises(SettingsError, match="no key 'tets-path'"):
        open_client(toy_conf(), node, Header("method", 0, 1))
    assert open_client(toy_conf(), {"partition-id": "0", "state-dir": str(tmp_path)}, Header("method", 0, 1)).id == 0


@pytest.mark.parametrize(
    "more, said",
    [
        (["max-pixls=5"], "did you mean 'max-pixels'?"),
        (["max-pixels=many"], "max-pixels: Value 'many'"),
        (["test-path=gone"], "test-path: there is no"),
        (["data-path=x"], "data-path is given by an option of its own"),
    ],
)
def test_a_supernode_does_not_start_with_wrong_settings(more, said, tmp_path, monkeypatch):
    keys.make(tmp_path / "k", ["a"])
    two_classes(tmp_path / "own")
    words = ["--keys", tmp_path / "k" / "sites" / "a", "--superlink", "127.0.0.1:1", "--client", 0, "--clients", 1]
    words += ["--state", tmp_path / "s", "--data", tmp_path / "own", "--set", *more]
    monkeypatch.setattr(sys, "argv", ["florilegium", "deploy", "supernode", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert str(ended.value.code).startswith("florilegium: ") and said in str(ended.value.code)


def test_what_flower_is_given_is_typed_and_absolute(tmp_path, monkeypatch):
    from flwr.common.config import parse_config_args

    monkeypatch.chdir(tmp_path)
    keys.make(tmp_path / "k", ["a"])
    two_classes(tmp_path / "it's own")
    lines = []

    def run(command, *_, **__):
        lines.append(command())
        return 0

    monkeypatch.setattr(processes, "run", run)
    monkeypatch.setattr(processes, "check_certificate", lambda *_: None)
    monkeypatch.setattr(processes, "check_fleet", lambda *_: None)
    words = "deploy supernode --keys k/sites/a --superlink 127.0.0.1:1 --client 1 --clients 2 --state s".split()
    words += ["--data", "it's own", "--set", "max-pixels=1000000", "--set", "label-column=finding"]
    monkeypatch.setattr(sys, "argv", ["florilegium", *words])
    with pytest.raises(SystemExit):
        main.main()
    assert parse_config_args([lines[0][lines[0].index("--node-config") + 1]]) == {
        "partition-id": 1,
        "num-partitions": 2,
        "state-dir": str(tmp_path / "s"),
        "data-path": str(tmp_path / "it's own"),
        "max-pixels": 1000000,
        "label-column": "finding",
    }
