"""The catalogue: its facts are those of the code, and methods of other packages come in or are refused in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from florilegium import catalogue
from florilegium.catalogue import CATALOGUE, CatalogueError, Role, Upload, side
from florilegium.config import composition
from florilegium.config.composition import SettingsError
from florilegium.protocol import payloads, phases


@pytest.mark.parametrize("method", CATALOGUE)
def test_uploads_are_the_payloads_that_the_client_side_declares(method: str) -> None:
    entry, client = CATALOGUE[method], side(method, "client")
    assert (client is None) == (not entry.modalities)
    if client is not None:
        asked = [phase for phase in phases.phases_of(client) if phase not in phases.ALWAYS]
        declared = {kind for phase in asked for kind in phases.declared(client, phase)[1]}
        assert declared - {payloads.Nothing, payloads.Report} == {payloads.PAYLOADS[name] for name in entry.uploads}
    assert entry.one_architecture == (Upload.WEIGHTS in entry.uploads)


def test_facts_in_words() -> None:
    assert CATALOGUE["fedavg"].clients == "one architecture: image, text" and CATALOGUE["selftuned"].clients.startswith(
        "none"
    )
    assert (
        catalogue.title("fedmmkt", "unimodal") == "u-FedMMKT"
        and catalogue.title("fedmmkt", "representation") == "FedMMKT"
    )
    assert catalogue.title("of a package that is gone") == "of a package that is gone"
    assert [name for name in CATALOGUE if catalogue.role(name) is Role.ALONE] == ["standalone"]
    assert "fedafd" in catalogue.with_modality("pair") and "fedmmkt" not in catalogue.with_modality("pair")
    with pytest.raises(CatalogueError, match="no method 'fedx'; there are centralised, creamfl"):
        catalogue.entry("fedx")


def test_the_table_of_readme_is_the_catalogue() -> None:
    readme = (Path(catalogue.__file__).parents[1] / "README.md").read_text()
    assert catalogue.methods_markdown() in readme


# -- other packages ----------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`package("mine", code)`: an installed package that names ENTRY of its module as the method `mine`."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(method: str, code: str, *, conf: bool = True) -> str:
        module = f"package_of_{method}_{tmp_path.parent.name.replace('-', '_')}"
        (tmp_path / module / "conf" / "method").mkdir(parents=True)
        (tmp_path / module / "__init__.py").write_text(code.replace("HERE", module))
        if conf:
            (tmp_path / module / "conf" / "method" / f"{method}.yaml").write_text(f"name: {method}\n")
        facts = tmp_path / f"{module}-1.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
        (facts / "entry_points.txt").write_text(f"[{catalogue.GROUP}]\n{method} = {module}:ENTRY\n")
        catalogue._installed.cache_clear()
        return module

    yield install
    catalogue._installed.cache_clear()
    for name in [name for name in sys.modules if name.startswith("package_of_")]:
        del sys.modules[name]


WHOLE = """
from florilegium.catalogue import Entry
SIDES = ("strategies.fedavg:FedAvg", "client_app.methods.fedavg:FedAvgClient")
ENTRY = Entry(*SIDES, "Mine", "-", "weights", ("image",), conf="HERE.conf")
"""


def test_a_method_of_another_package_is_one_of_all(package) -> None:
    package("mine", WHOLE)
    assert list(catalogue.entries())[-1] == "mine" and catalogue.title("mine") == "Mine"
    assert composition.compose(["method=mine"]).method.name == "mine"
    assert side("mine", "server") is side("fedavg", "server")


@pytest.mark.parametrize(
    "method, code, conf, said",
    [
        ("mine", "ENTRY = 1", True, "it is a int, not a florilegium.catalogue.Entry"),
        ("mine", "import nothing_of_this_name", True, "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("mine", WHOLE, False, "there is no file method/mine.yaml in the package package_of_mine"),
        ("mine", WHOLE.replace(', conf="HERE.conf"', ""), True, "its entry names no `conf`"),
        ("fedavg", WHOLE, True, "another method has this name"),
    ],
)
def test_one_that_cannot_be_used_stops_no_other(package, method, code, conf, said) -> None:
    package(method, code, conf=conf)
    (line,) = catalogue.problems().values()
    assert line.startswith(f"the method {method} (package_of_{method}") and "\n" not in line
    assert said in line
    assert (
        catalogue.entries().keys() == CATALOGUE.keys() and composition.compose(["method=fednh"]).method.name == "fednh"
    )
    if method == "mine":
        with pytest.raises(SettingsError, match="the method mine .* cannot be used"):
            composition.compose(["method=mine"])
