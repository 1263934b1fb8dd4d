"""`florilegium settings`: every key has a help text and is known; what a plain run uses is what the classes say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from florilegium.catalogue import CATALOGUE
from florilegium.cli import main
from florilegium.config import composition, reference
from florilegium.config.errors import SettingsError
from florilegium.config.reference import look_up, set_in

METHODS = list(CATALOGUE)


@pytest.fixture(scope="module")
def composed() -> dict[str, composition.Settings]:
    """The settings of a plain `florilegium run method=m`, by m."""
    return {method: composition.compose([f"method={method}", "references=none"]) for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_has_a_help_text(method: str) -> None:
    known = reference.every(method)
    assert not [key for key, each in known.items() if not each.help.strip()]
    assert len(known) > 120


@pytest.mark.parametrize("method", METHODS)
def test_every_key_of_a_run_is_known(method: str, composed: dict[str, composition.Settings]) -> None:
    for key in leaves(composition.plain(composed[method])["method"], "method"):
        look_up(key, method)


def test_every_key_outside_the_methods_is_known(composed: dict[str, composition.Settings]) -> None:
    """Such a key is looked up alike whatever the method, so once is enough for those of all runs."""
    keys = {key for conf in composed.values() for key in leaves(composition.plain(conf))}
    for key in keys:
        if not key.startswith("method."):
            look_up(key, METHODS[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_plain_run_has_the_classes_defaults_but_for_what_its_yaml_lists(
    method: str, composed: dict[str, composition.Settings]
) -> None:
    known, shared_keys = reference.every(method), set(composed[method].method.shared)
    listed = set(dict(reference.flat(reference.raw(file := reference.method_file(method)), "method")))
    for group, choice in mounted(file):
        place = f"method.{group.partition('@')[2]}"
        chosen = reference.raw(file.parents[1] / group.partition("@")[0].strip("/") / f"{choice}.yaml")
        listed |= set(dict(reference.flat(chosen, place)))
    for key, value in leaves(composition.plain(composed[method])["method"], "method").items():
        name = key.split(".")[1]
        if key in listed or name in shared_keys or name == "name" or key not in known:
            continue
        if not any(key.startswith(f"{each}.") for each in listed):  # below `t2i: ${tuning}` and the like
            assert value == known[key].default, key


@pytest.mark.parametrize("method", METHODS)
def test_the_yaml_of_a_method_repeats_no_default(method: str) -> None:
    """Beside references to other keys and keys of both sides, a line is there because it differs."""
    known, sides = reference.every(method), ("method.server.", "method.client.")
    for key, value in reference.flat(reference.raw(reference.method_file(method)), "method"):
        if key.startswith(sides) and "${" not in str(value):
            assert value != known[key].default, key


@pytest.mark.parametrize("method", METHODS)
def test_a_key_that_no_file_lists_can_be_set_and_its_type_is_checked(method: str) -> None:
    listed = dict(reference.flat(reference.raw(reference.method_file(method)), "method"))
    known = {
        key: each
        for key, each in reference.every(method).items()
        if key.startswith(("method.server.", "method.client.")) and not any(key.startswith(given) for given in listed)
    }
    whole = next(key for key, each in known.items() if each.type == "int")
    with pytest.raises(SettingsError, match=f"^{whole}: Value 'many' of type 'str' could not be converted to Int"):
        composition.compose([f"method={method}", f"{whole}=many"])


UNTYPED = {"architectures", "experiment", "references", "hydra/help", "method", "fidelity"}


@pytest.mark.parametrize("path", sorted(composition.CONF.rglob("*.yaml")), ids=lambda path: path.stem)
def test_no_file_of_conf_repeats_a_default(path: Path) -> None:
    group = str(path.parent.relative_to(composition.CONF))
    if group in UNTYPED:
        return
    place = "" if group == "." else reference.PLACES.get(group, group)
    known = reference.every("fedavg" if group == "guidance" else "fedmmkt")
    for key, value in reference.flat(reference.raw(path), place):
        assert key not in known or value != known[key].default, f"{path.name}: {key} is {value} anyway"


def test_a_key_is_described_with_its_bounds_and_the_files_that_set_it() -> None:
    found, below = look_up("diffusion.steps", "fedmmkt")
    assert (found.type, found.default, found.range, below) == ("int", 12, "1 to 1,000", [])
    assert ("conf/diffusion/sd15.yaml", 50) in set_in("diffusion.steps", "fedmmkt")
    section, below = look_up("cohort", "fedmmkt")
    assert section.section and [each.key for each in below] == ["cohort.fraction"]
    assert look_up("clients.mix[0].model", "fedmmkt")[0].key == "clients.mix[].model"
    shared, _ = look_up("method.public_set", "creamfl")
    assert shared.range == "proxy, synthetic" and "one value for method.server.public.source" in shared.help
    files = [file for file, _ in set_in("method.public_set", "creamfl")]
    assert "conf/method/fedmd.yaml" not in files and "conf/experiment/creamfl_synthetic.yaml" in files


def test_an_unknown_key_gets_the_nearest_one() -> None:
    with pytest.raises(SettingsError, match=r"no setting 'clients.wdth' \(did you mean 'clients.width'\?\)"):
        look_up("clients.wdth", "fedmmkt")
    with pytest.raises(SettingsError, match="no method 'fedmkt'"):
        look_up("method.server", "fedmkt")


def test_the_command_prints_sections_tables_and_details(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for arguments in ([], ["cohort"], ["clients.width"]):
        options = main.parse(["settings", *arguments])
        assert not options.command(options)
        said.append(capsys.readouterr().out)
    assert "rounds" in said[0] and "clients" in said[0]
    assert "cohort.fraction" in said[1] and "0 to 1" in said[1]
    assert "128" in said[2] and "conf/clients/toy.yaml: 32" in said[2]


def mounted(file: Path) -> list[tuple[str, str]]:
    """(group@place, choice) of the groups that a method's YAML mounts below itself."""
    entries = OmegaConf.load(file).get("defaults") or []
    those = [pair for each in entries if not isinstance(each, str) for pair in each.items()]
    return [(group, choice) for group, choice in those if "@" in group and not group.startswith("override")]


def leaves(values: Any, where: str = "") -> dict[str, Any]:
    """The dotted keys and values of plain settings; of a list, its first entry's keys."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{where}.{name}" if where else str(name)
        if isinstance(value, dict) and value:
            found |= leaves(value, key)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            found |= leaves(value[0], f"{key}[0]")
        else:
            found[key] = value
    return found


def test_settings_yaml_reads_back_as_it_was(tmp_path, composed: dict[str, composition.Settings]) -> None:
    (tmp_path / "settings.yaml").write_text(OmegaConf.to_yaml(composition.plain(composed["fedmmkt"])))
    assert composition.read_yaml(tmp_path / "settings.yaml") == composed["fedmmkt"]
