"""Without a network a hub id is one line in seconds, which says what to fetch and where to put it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from florilegium import hub
from florilegium.config.clients import ClientsSettings
from florilegium.config.data import DataSettings
from florilegium.data.datasets import DataError, open_dataset
from florilegium.learning import judge_training
from florilegium.models import checkpoints
from florilegium.models.bodies import ModelError
from florilegium.resources import Resources


@pytest.fixture
def online(monkeypatch, tmp_path) -> Iterator[None]:
    """As where HF_HUB_OFFLINE is not set, nothing is in the cache, and the hub was not asked yet."""
    import datasets

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "silent", [])
    monkeypatch.setattr(hub, "PATIENCE_SECONDS", 0.2)
    hub.reached.cache_clear()
    yield
    hub.reached.cache_clear()


@pytest.fixture
def calls(online, monkeypatch) -> Iterator[list[str]]:
    """Who called at a hub that takes every call and never answers."""
    heard: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as door:

        def listen() -> None:
            open_calls = []
            while True:
                try:
                    open_calls.append(door.accept()[0])
                except OSError:  # the test is over
                    return
                heard.append("call")

        threading.Thread(target=listen, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{door.getsockname()[1]}")
        yield heard


def line_of(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_silent_hub_is_called_once_for_everything_that_is_opened(calls, toy_conf, caplog) -> None:
    said = {}
    for key, name in (("model", "generator"), ("captioner", "captioner"), ("clip", "clip_score")):
        with pytest.raises((ValueError, OSError)) as raised:
            getattr(Resources(toy_conf(f"diffusion.{key}=nobody/{key}")), name)()
        said[f"diffusion.{key}", f"nobody/{key}"] = line_of(raised)
    with pytest.raises(ModelError) as raised:
        checkpoints.check(ClientsSettings(architectures={"mine": {"pretrained": "nobody/net"}}), "text", "mine")
    said["clients.architectures.mine.pretrained", "nobody/net"] = line_of(raised)
    with pytest.raises(DataError) as raised:
        open_dataset(DataSettings(name="own", hub="nobody/rows"))
    said["data.hub", "nobody/rows"] = line_of(raised)
    with pytest.raises(ValueError) as raised:
        judge_training.opened("nobody/start", ["a", "b"], 16)
    said["--start", "nobody/start"] = line_of(raised)
    for (setting, place), line in said.items():
        kind = "--repo-type dataset " if setting == "data.hub" else ""
        assert line.startswith(f"{setting}: {place} cannot be fetched: {constants.ENDPOINT} cannot be reached"), line
        assert line.endswith(f"`hf download {kind}{place} --local-dir DIR`, and name DIR in {setting}"), line
    assert len(calls) == 1 and "Retry" not in caplog.text


def test_a_hub_that_answers_is_asked_for_the_file(online, monkeypatch) -> None:
    asked = []

    class NotThere(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), NotThere)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(hub, "PATIENCE_SECONDS", 10.0)
    monkeypatch.setattr(constants, "ENDPOINT", place)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", place + "/{repo_id}/resolve/{revision}/{filename}", raising=False
    )
    with pytest.raises(hub.HubError, match="none of this name, or it needs a login"):
        hub.fetched("nobody/nothing", "config.json", "x")
    server.shutdown()
    server.server_close()
    assert not hub.silent and asked[0] in ("", "/") and asked[1].startswith("/nobody/nothing/resolve/main/config.json")


def test_a_forbidden_hub_is_not_called(calls, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(hub.HubError, match="HF_HUB_OFFLINE forbids to fetch"):
        hub.fetched("nobody/nothing", "config.json", "x")
    assert not calls


def test_a_place_is_a_hub_id_or_not(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "net").mkdir(parents=True)
    assert hub.is_id("org/name") and hub.is_id("bert-base-uncased")
    assert not any(map(hub.is_id, ("own/net", str(tmp_path), "a/b/c", "../a", "~/a")))
