"""The catalogue: its facts are those of the code, and methods of other packages come in or are refused in one line."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from florilegium import catalogue
from florilegium.catalogue import CATALOGUE, CatalogueError, Role, Upload, side
from florilegium.config import composition
from florilegium.config.composition import SettingsError
from florilegium.contract.checks import has_true_facts


@pytest.mark.parametrize("method", CATALOGUE)
def test_facts_are_those_of_the_code(method: str) -> None:
    has_true_facts(method)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"uploads": (Upload.LOGITS,)}, "the client side declares \\['Answers', 'Logits'\\], the entry \\['Logits'\\]"),
        ({"one_architecture": True}, "exactly where they need one architecture"),
        ({"modalities": ()}, "a client side and modalities come together"),
        ({"paper": ""}, "lacks a title, a paper or exchanges"),
    ],
)
def test_a_wrong_fact_is_named(wrong: dict, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOGUE, "fedmmkt", replace(CATALOGUE["fedmmkt"], **wrong))
    with pytest.raises(AssertionError, match=said):
        has_true_facts("fedmmkt")


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
    assert "fedafd" in catalogue.with_modality("pair") and "fedproto" not in catalogue.with_modality("pair")
    with pytest.raises(CatalogueError, match="no method 'fedx'; there are biasfl, centralised, creamfl"):
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
