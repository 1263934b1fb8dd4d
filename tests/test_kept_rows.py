"""Rows of the embedded data, kept in a node's state directory: the same rows, opened once, and only where they may."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import pytest
import torch

from client_app import opening
from client_app.opening import open_rows
from florilegium.data.private import open_private

TRIO = "clients.mix=[{modality:image,model:resnet},{modality:text,model:bert},{modality:pair,model:resnet+bert}]"


def same(a, b) -> bool:
    """Whether two PrivateData hold the same, field by field."""
    if a.classes != b.classes:
        return False
    for split in opening.SPLITS:
        for x, y in zip(astuple(getattr(a, split)), astuple(getattr(b, split)), strict=True):
            if not (torch.equal(x, y) and x.dtype == y.dtype if isinstance(x, torch.Tensor) else x == y):
                return False
    return True


@pytest.mark.parametrize("modality", ["image", "text", "pair"])
def test_kept_rows_are_those_of_the_partition_and_are_opened_once(modality, toy_conf, tmp_path, monkeypatch) -> None:
    conf, node = toy_conf(TRIO, "clients.partition.min_samples=2"), {"state-dir": str(tmp_path / "site")}
    client = ("image", "text", "pair").index(modality)
    opened = open_private(conf, client, modality, node)
    assert same(open_rows(conf, client, modality, node), opened)
    monkeypatch.setattr(opening, "open_private", None)  # whoever calls it fails
    assert same(open_rows(conf, client, modality, node), opened)
    assert len(opened.train) and (not opened.train.texts if modality == "image" else opened.train.texts)


def test_other_settings_are_other_rows_and_a_torn_file_is_had_again(toy_conf, tmp_path) -> None:
    node, place = {"state-dir": str(tmp_path / "site")}, tmp_path / "site" / "rows"
    confs = [toy_conf(f"seed={seed}") for seed in range(4)]
    dealt = [open_rows(conf, 0, "image", node) for conf in confs]
    assert not same(dealt[0], dealt[1])
    assert len(list(place.iterdir())) == opening.KEPT == 3  # the oldest went
    newest = max(place.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:100])
    assert same(open_rows(confs[3], 0, "image", node), dealt[3])
    assert opening.fingerprint(confs[0]) != opening.fingerprint(toy_conf("clients.partition.alpha=9"))


def test_without_a_state_directory_and_of_a_sites_own_data_nothing_is_kept(toy_conf, tmp_path) -> None:
    open_rows(toy_conf(), 0, "image", {})
    table = tmp_path / "own.csv"
    names = open_private(toy_conf(), 2, "text", {}).classes
    table.write_text("text,label\n" + "".join(f"words of {name},{name}\n" for name in names))
    own = open_rows(toy_conf(), 2, "text", {"state-dir": str(tmp_path / "site"), "data-path": str(table)})
    assert len(own.train) == len(names) and not list(Path(tmp_path).rglob("*.safetensors"))


def test_a_changed_file_of_the_data_is_seen(toy_conf, tmp_path) -> None:
    conf = toy_conf()
    conf.data.name, conf.data.path = "own", str(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"a")
    before = opening.fingerprint(conf)
    assert opening.fingerprint(conf) == before
    (tmp_path / "train.parquet").write_bytes(b"ab")
    assert opening.fingerprint(conf) != before


def test_a_client_with_kept_rows_imports_neither_partitioners_nor_tables(toy_conf, tmp_path) -> None:
    """They cost more than torch itself, at every message."""
    from florilegium.config import composition

    conf = toy_conf()
    open_rows(conf, 0, "image", {"state-dir": str(tmp_path / "site")})
    Path(tmp_path, "settings.json").write_text(json.dumps(composition.plain(conf)))
    program = (
        "import sys; from pathlib import Path; import client_app.app; from florilegium.config import composition; "
        "from florilegium.protocol.codec import Header; from client_app.opening import open_client; "
        f"conf = composition.load({{'settings': Path({str(tmp_path)!r}, 'settings.json').read_text()}}); "
        f"open_client(conf, {{'partition-id': 0, 'state-dir': {str(tmp_path / 'site')!r}}}, "
        "Header('method', 1, 1)).data; "
        "print(sorted({'flwr_datasets', 'datasets', 'pandas', 'diffusers', 'hydra'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
