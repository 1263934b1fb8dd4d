"""What machines and terminals are like: signals, terminals that are not UTF-8, ports and addresses of a SuperLink."""

import io
import os
import signal
import sys
from concurrent import futures

import pytest

from florilegium.cli import main
from florilegium.runtime import inprocess, keys, launch, processes

TOY = ["data=toy", "clients=toy", "references=none", "rounds=1", "runtime=inprocess"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_that_ends_a_run_ends_it_with_one_line(number, tiny_overrides, tmp_path, monkeypatch, capsys):
    before = [signal.getsignal(each) for each in launch.ENDINGS]
    monkeypatch.setattr(inprocess, "federate", lambda conf: os.kill(os.getpid(), number))
    monkeypatch.setattr(sys, "argv", ["florilegium"])
    try:
        assert launch.main([*TOY, *tiny_overrides, f"out={tmp_path / 'run'}"]) == 130
    finally:
        for each, action in zip(launch.ENDINGS, before, strict=True):
            signal.signal(each, action)
    assert capsys.readouterr().err == "florilegium: interrupted; everything this run started has ended\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_that_is_not_utf_8_gets_a_stand_in(encoding, monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    monkeypatch.setattr(sys, "argv", ["florilegium", "methods"])
    main.main()
    for stream in streams:
        print("a bar █ of 岩", file=stream, flush=True)
        assert stream.buffer.getvalue().endswith(b"a bar ? of ?\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("federation") / "keys"
    keys.make(place, ["a"])
    return place


def test_what_a_supernode_finds_at_a_wrong_port_is_said(made):
    """A gRPC server with the right certificate that is no Fleet API, as a SuperLink's other ports are."""
    import grpc

    server = grpc.server(futures.ThreadPoolExecutor(1))
    pair = ((made / "server" / "server.key").read_bytes(), (made / "server" / "server.crt").read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    try:
        with pytest.raises(processes.LaunchError, match=f"127.0.0.1:{port} takes no SuperNodes; .*fleet address"):
            processes.supernode_command(made / "sites" / "a", f"127.0.0.1:{port}", {"partition-id": 0})
    finally:
        server.stop(None)


def test_a_port_without_tls_and_one_where_nobody_is_are_said(made, capsys):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as plain:
        port = plain.getsockname()[1]
        with futures.ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: plain.accept()[0].close())
            with pytest.raises(processes.LaunchError, match=f"what answers at 127.0.0.1:{port} "):
                processes.check_certificate(f"127.0.0.1:{port}", made / "server" / "ca.crt")
    processes.check_certificate(f"127.0.0.1:{port}", made / "server" / "ca.crt")
    assert f"nobody answers at 127.0.0.1:{port} yet (Connection refused)" in capsys.readouterr().out


def test_an_address_may_be_one_of_ipv6(made, tmp_path):
    assert processes.split("[::1]:9093") == ("::1", 9093) and processes.split("localhost:1") == ("localhost", 1)
    try:
        command = processes.superlink_command(made / "server", "::1", 0, "[::1]:0", tmp_path / "db")
    except processes.LaunchError as error:  # a machine without IPv6
        assert "cannot listen on ::1:0: Cannot assign requested address" in str(error)
    else:
        assert command[command.index("--host") + 1] == "::1"
