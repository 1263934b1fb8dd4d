"""Keys, commands and messages of a deployment, and what docker/ says, without starting any of Flower's processes."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
import sys
import time
import tomllib
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from florilegium import preflight
from florilegium.cli import main
from florilegium.config import composition
from florilegium.runs import lock, writer
from florilegium.runtime import commands, keys, processes

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("keys")
    keys.make(place, ["a", "b"], ["server.example", "10.0.0.5"])
    return place


# -- keys --------------------------------------------------------------------------------------------------------------


def test_keys_fit_together_are_private_and_are_never_made_twice(made: Path) -> None:
    keys.check_server(made / "server")
    keys.check_site(made / "sites" / "a")
    shown = keys.certificate(made / "server" / "server.crt")
    assert sorted(keys.alternatives(shown)) == ["10.0.0.5", "127.0.0.1", "localhost", "server.example"]
    secret = [
        made / "authority" / "ca.key",
        made / "server" / "server.key",
        made / "server" / "superexec.secret",
        made / "sites" / "a" / "node.key",
    ]
    assert [stat.S_IMODE(path.stat().st_mode) for path in secret] == [0o600] * 4
    assert sorted(path.name for path in (made / "sites" / "a").iterdir()) == ["ca.crt", "node.key", "node.pub"]
    a, b = ((made / "sites" / site / "node.pub").read_text() for site in "ab")
    assert a != b and a.startswith("ecdsa-sha2-nistp384 ")
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    assert keys.make(made, ["a", "b"], ["server.example"]) == []
    assert [path.name for path in keys.make(made, ["c"], ["server.example"])] == ["node.key", "node.pub", "ca.crt"]
    assert all(path.read_bytes() == data for path, data in before.items())


def test_what_is_wrong_with_a_key_or_certificate_is_one_line_that_names_the_file(made: Path, tmp_path: Path) -> None:
    def copied(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for path in [*(made / "server").iterdir(), *(made / "sites" / "a").iterdir()]:
            (folder / path.name).write_bytes(path.read_bytes())
        return folder

    other = tmp_path / "other"
    keys.make(other, ["x"])
    wrong_key, foreign, torn, absent = (copied(name) for name in ("wrong_key", "foreign", "torn", "absent"))
    (wrong_key / "server.key").write_bytes((other / "server" / "server.key").read_bytes())
    (foreign / "ca.crt").write_bytes((other / "authority" / "ca.crt").read_bytes())
    (torn / "server.crt").write_bytes((made / "server" / "server.crt").read_bytes()[:200])
    (torn / "node.key").write_text("no key")
    (absent / "server.key").unlink()
    for folder, said in (
        (wrong_key, "server.key is not the key of server.crt"),
        (torn, "is not a PEM certificate"),
        (foreign, "was not signed by the authority of ca.crt"),
        (absent, "cannot be read: No such"),
    ):
        with pytest.raises(keys.KeyFileError, match=said) as told:
            keys.check_server(folder)
        assert str(folder) in str(told.value) and "\n" not in str(told.value)
    with pytest.raises(keys.KeyFileError, match="node.key is not a private key without password"):
        keys.check_site(torn)


def test_certificates_out_of_date_or_without_the_loopback_address_are_refused(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = keys.certificate(made / "server" / "server.crt")

    class Later(keys.datetime):
        @classmethod
        def now(cls, zone=None):
            return shown.not_valid_after_utc + timedelta(days=1)

    monkeypatch.setattr(keys, "datetime", Later)
    with pytest.raises(keys.KeyFileError, match=r"server.crt ran out on \d{4}-\d\d-\d\d$"):
        keys.check_server(made / "server")
    monkeypatch.undo()
    monkeypatch.setattr(keys, "LOOPBACK", "localhost")
    keys.make(tmp_path / "no", [], ["server.example"])
    monkeypatch.undo()
    with pytest.raises(keys.KeyFileError, match="does not name 127.0.0.1.*it names localhost, server.example"):
        keys.check_server(tmp_path / "no" / "server")


@pytest.mark.parametrize("name", ["../a", "", "a b", "-x"])
def test_a_sites_name_is_a_folders_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(keys.KeyFileError, match="a name is letters"):
        keys.make(tmp_path, [name])


# -- commands ----------------------------------------------------------------------------------------------------------


def test_the_fleet_has_a_port_of_its_own_up_to_1_39(monkeypatch: pytest.MonkeyPatch) -> None:
    assert commands.fleet_is_grpc("1.39.0") and not commands.fleet_is_grpc("1.40.0")
    given = (Path("k"), "127.0.0.1", 9093, "0.0.0.0:9092", Path("db"), True)
    node = (Path("k"), "h:9092", 9094, {"partition-id": 0, "state-dir": "/a b"})
    for release, there in (("1.39.2", True), ("1.42.0", False)):
        monkeypatch.setattr(commands, "version", lambda name, release=release: release)
        assert ("--fleet-api-address" in commands.superlink(*given)) is there
        assert ("--grpc-rere" in commands.supernode(*node)) is there
        for command in (commands.superlink(*given), commands.supernode(*node), commands.serverapp(Path("k"), "h:1")):
            assert "--insecure" not in command


def test_node_configuration_is_read_by_flower_as_it_was_meant() -> None:
    from flwr.common.config import parse_config_args

    config = {
        "partition-id": 3,
        "num-partitions": 4,
        "state-dir": '/a folder/with \\ and "',
        "data-path": "it's \\\" = 'é'",
    }
    assert parse_config_args([commands.node_config(config)]) == config
    text = commands.connection("lab", "[::1]:9093", Path('/it\'s/a "quoted" place/ca.crt'))
    assert tomllib.loads(text)["superlink"]["lab"]["root-certificates"] == '/it\'s/a "quoted" place/ca.crt'


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("superlink --keys {made}/nowhere --database {tmp}/db", "server.crt cannot be read: No such file"),
        ("superlink --keys {made}/server --control nonsense --database {tmp}/db", "'nonsense' is not HOST:PORT"),
        (
            "supernode --keys {made}/sites/a --superlink h:1 --client 4 --clients 4 --state {tmp}/s",
            "none of the 4 clients",
        ),
        ("supernode --keys {made}/z --superlink 127.0.0.1:1 --client 0 --clients 4 --state {tmp}/s", "cannot be read"),
        (
            "supernode --keys {made}/sites/a --superlink 127.0.0.1:1 --client 0 --clients 4 --state {tmp}/s"
            " --data {tmp}/none",
            "data-path: there is no",
        ),
        (
            "supernode --keys {made}/sites/a --superlink h:1 --client 0 --clients 4 --state {tmp}/s --set x",
            "not KEY=VALUE",
        ),
        ("register {made} --superlink 127.0.0.1:1 --sites q", "no key of site 'q'"),
        ("health --keys {made}/server --superlink 127.0.0.1:1", "no healthy SuperLink at 127.0.0.1:1"),
        ("keys {tmp}/k --sites a/b", "a name is letters"),
    ],
)
def test_what_cannot_work_is_told_in_one_line_before_anything_starts(
    given: str,
    said: str,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = given.format(made=made, tmp=tmp_path).split()
    monkeypatch.setattr(sys, "argv", ["florilegium", "deploy", *words])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert str(ended.value.code).startswith("florilegium: ") and said in str(ended.value.code)
    assert "\n" not in str(ended.value.code)


def test_a_port_that_is_taken_is_told(made: Path, tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(processes.LaunchError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            processes.superlink_command(made / "server", "127.0.0.1", port, f"127.0.0.1:{port}", tmp_path / "db")


def test_connections_are_added_to_flowers_home_not_over_it(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))

    def connect(name: str) -> None:
        arguments = ["connect", name, "--keys", str(made / "server"), "--superlink", "control:9093"]
        monkeypatch.setattr(sys, "argv", ["florilegium", "deploy", *arguments])
        main.main()

    connect("one")
    connect("two")
    there = tomllib.loads((tmp_path / "config.toml").read_text())["superlink"]
    assert there["default"] == "one" and there["two"] == {
        "address": "control:9093",
        "root-certificates": str(made / "server" / "ca.crt"),
    }
    with pytest.raises(SystemExit, match="has a connection 'two' already"):
        connect("two")


def test_deploy_local_is_a_run_on_a_runtime_of_its_own() -> None:
    assert main.local(["--keep", "rounds=1"]) == ["runtime=local", "runtime.keep=true", "rounds=1"]
    conf = composition.complete(composition.compose(["runtime=local", "data=toy", "clients=toy", "out=x"]))
    preflight.validate(conf)
    assert conf.assets and conf.runtime.fatal_codes == []
    with pytest.raises(composition.SettingsError, match="runtime: name must be one of simulation, inprocess"):
        preflight.validate(composition.complete(composition.compose(["runtime=local", "runtime.name=lokal", "out=x"])))
    with pytest.raises(composition.SettingsError, match="runtime: superlink must name a connection"):
        composition.complete(composition.compose(["runtime=deployment", "out=x"]))


def test_a_run_directory_has_one_writer_until_that_ends(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from florilegium.runs import lock; "
        "print(lock.hold(Path(sys.argv[1], '.lock')), flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "True\n"
    with pytest.raises(writer.RunError, match="another server process writes it"):
        writer.Run.open(tmp_path, {"rounds": 1})
    other.kill()
    other.communicate()
    assert lock.hold(tmp_path / ".lock") and lock.hold(tmp_path / ".lock")


def test_a_process_whose_child_holds_its_output_open_is_told_when_it_ends(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As a refused SuperNode does, whose SuperExec lives until the SuperNode is waited for."""
    child = tmp_path / "child"
    begun = time.monotonic()
    code = processes.run(
        lambda: ["sh", "-c", f"sleep 60 & echo $! > {child}; echo 'refused [code: 2001]'; exit 7"],
        tmp_path / "home",
        restart=None,
    )
    assert code == 7 and time.monotonic() - begun < 10
    out, err = capfd.readouterr()
    assert out == "refused [code: 2001]\n"
    assert err == "florilegium: sh ended: the SuperLink does not take nodes without a key\n"
    with pytest.raises(ProcessLookupError):  # and nothing of it is left
        os.kill(int(child.read_text()), 0)


# -- docker ------------------------------------------------------------------------------------------------------------


class Loader(yaml.SafeLoader):
    """Compose's YAML: tags such as !override say how files merge."""


Loader.add_multi_constructor(
    "!",
    lambda loader, tag, node: (
        loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.MappingNode)
        else loader.construct_sequence(node, deep=True)
    ),
)


def composed(name: str, **given: str) -> dict:
    """A compose file with the values `given`, or the variables' defaults, in their places; a command is words."""

    def value(found: re.Match[str]) -> str:
        variable, sign, other = found[1], found[2] or "", found[3] or ""
        return (other if variable in given else "") if sign == ":+" else given.get(variable, other)

    text = re.sub(r"\$\{(\w+)(?:(:?[-?+])([^}]*))?\}", value, (DOCKER / name).read_text())
    whole: dict = yaml.load(text, Loader)
    for service in whole["services"].values():
        if isinstance(service.get("command"), str):
            service["command"] = shlex.split(service["command"])
    return whole


@pytest.mark.parametrize("name", sorted(path.name for path in DOCKER.glob("*.yaml") if "services:" in path.read_text()))
def test_compose_files_keep_the_specification(name: str) -> None:
    from compose_spec import PyCompose

    whole = composed(name)
    assert PyCompose.from_json(json.dumps(whole)).service_names() == list(whole["services"])
    broken = json.loads(json.dumps(whole))
    next(iter(broken["services"].values()))["restart"] = "now and then"
    with pytest.raises(ValueError):
        PyCompose.from_json(json.dumps(broken))  # the parser does look
    declared = {
        kind: set(whole.get(kind, {})) | set(composed("compose.yaml").get(kind, {})) for kind in ("networks", "volumes")
    }
    for service in whole["services"].values():
        assert set(service.get("networks", ())) <= declared["networks"] or name == "site.yaml"
        mounts = [volume.split(":")[0] for volume in service.get("volumes", ())]
        assert {mount for mount in mounts if re.match(r"\w", mount)} <= declared["volumes"]


def test_sites_see_the_fleet_port_alone() -> None:
    services = composed("compose.yaml")["services"]
    sites = {name: s for name, s in services.items() if name.startswith(("image-", "text-"))}
    assert len({str(s["command"]) for s in sites.values()}) == 4
    for service in sites.values():
        assert service["networks"] == ["sites"] and "ports" not in service
        assert service["command"][service["command"].index("--superlink") + 1] == "superlink:9092"
    link = services["superlink"]["command"]
    # the name `control` has an address on the operators' network only, so nothing listens for sites but the Fleet API
    assert link[link.index("--control") + 1] == "control:9093" and link[link.index("--fleet") + 1] == "0.0.0.0:9092"
    assert services["superlink"]["networks"] == {"operators": {"aliases": ["control"]}, "sites": {}}
    assert [port for s in services.values() for port in s.get("ports", ())] == ["9092:9092"]
    for name, service in services.items():
        assert name == "operator" or service["restart"] == "unless-stopped", name
    http = composed("compose.http.yaml")["services"]
    assert http["superlink"]["networks"] == {"operators": {"aliases": ["control"]}} and not http["superlink"]["ports"]
    passed = re.findall(r"location (.*?)\s*\{ proxy_pass", (DOCKER / "fleet.conf").read_text())
    assert passed == ["/v1/fleet/", "= /health"]


def test_what_containers_run_are_our_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compose.yaml", "site.yaml"):
        for service in composed(name)["services"].values():
            if service["command"][0] != "--help":
                options = main.parse(["deploy", *map(str, service["command"])])
                assert options.command.__name__ == f"run_{service['command'][0]}"
    check = composed("compose.yaml")["services"]["superlink"]["healthcheck"]["test"]
    assert check[:2] == ["CMD", "florilegium"] and main.parse(check[2:]).command.__name__ == "health"


def test_a_sites_own_data_are_mounted_and_named_where_they_are_given() -> None:
    site, embedded = (composed("site.yaml", **given)["services"]["supernode"] for given in ({"DATA": "./mine"}, {}))
    assert main.parse(["deploy", *site["command"]]).data == Path("/data") and "./mine:/data:ro" in site["volumes"]
    assert main.parse(["deploy", *embedded["command"]]).data is None and "no-data:/data:ro" in embedded["volumes"]


def test_extras_reach_the_images_of_every_compose_file() -> None:
    """The Dockerfile's own line, run as its shell runs it."""
    for name in ("compose.yaml", "site.yaml"):
        built = [s["build"] for s in composed(name, EXTRAS="operations")["services"].values()]
        assert all(build["args"]["EXTRAS"] == "operations" for build in built), name
    line = re.search(r"^RUN (python -c .*?) > requirements", (DOCKER / "Dockerfile").read_text(), re.M | re.S)[1]
    assert line.split()[-1] == "${EXTRAS}"
    line = line.replace("\\\n", "").replace("python", sys.executable, 1)

    def wanted(extras: str) -> list[str]:
        run = subprocess.run(["sh", "-c", line], cwd=ROOT, env={"EXTRAS": extras}, capture_output=True, text=True)
        return run.stdout.splitlines()

    plain = wanted("")
    assert plain == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    both = wanted("operations privacy")
    assert both[: len(plain)] == plain and any("prometheus-client" in one for one in both) and "opacus" in both[-1]


def test_the_dockerfile_is_clean_and_its_last_stages_are_small_and_not_root() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([str(hadolint), str(DOCKER / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    stages = re.split(r"^FROM ", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    names = [stage.split("\n")[0].split(" AS ")[1] for stage in stages]
    assert names == ["built", "small", "server", "client"]
    assert "USER 10001" in stages[1] and "pip" not in "".join(stages[1:]).replace("/pip", "")
    assert all(stage.startswith("small AS") for stage in stages[2:])
