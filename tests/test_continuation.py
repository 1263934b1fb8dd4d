"""`resume=true`: the settings are those of the run; a folder that holds none is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from florilegium.config import composition
from florilegium.config.composition import SettingsError
from florilegium.runs.reader import recorded
from florilegium.runs.writer import Run, same_settings
from florilegium.runtime import continuation, launch
from tools.keep_records import kept_settings

TOY = ["data=toy", "diffusion=mini", "clients=toy"]
ALIKE = "clients.mix=[{modality: image, model: resnet}, {modality: image, model: resnet}]"


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """The directory of a run of FedAvg with settings of its own."""
    out = tmp_path / "first"
    conf = composition.complete(composition.compose([*TOY, "method=fedavg", ALIKE, "seed=7", f"out={out}"]))
    out.mkdir()
    (out / "settings.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(composition.plain(conf))))
    (out / "rounds.jsonl").write_text('{"arm": "method", "round": 0, "seconds": 1.0, "metrics": {}}\n')
    return out


def continued(*given: str) -> composition.Settings:
    return continuation.continued(composition.compose(given), given)


def prepared(*given: str) -> composition.Settings:
    return launch.prepare(composition.compose(given), given=given)[1]


def test_a_run_goes_on_with_its_own_settings(held: Path) -> None:
    conf = prepared(f"out={held}", "resume=true")
    assert (conf.method.name, conf.seed, len(conf.clients.mix)) == ("fedavg", 7, 2)
    assert conf.resume and conf.out == str(held) and conf.clients.state_dir == str(held / "state")


def test_what_a_resumed_run_may_change_is_taken_from_the_command_line(held: Path) -> None:
    conf = prepared(f"out={held}", "resume=true", "rounds=9", "clients.threads=2", "timeouts.exchange=77")
    assert (conf.rounds, conf.clients.threads, conf.timeouts.exchange) == (9, 2, 77)
    assert conf.method.name == "fedavg" and conf.seed == 7


def test_what_lies_beside_a_changed_setting_stays(held: Path) -> None:
    """A setting takes its own value along; a choice of a group takes its whole section."""
    kept = ["timeouts.quorum=1", "timeouts.late=decay", "timeouts.decay=0.9", "runtime=local", "runtime.keep=true"]
    kept += ["sinks.prometheus.port=9999"]
    conf = composition.complete(composition.compose([*TOY, "method=fedavg", ALIKE, *kept, f"out={held}"]))
    (held / "settings.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(composition.plain(conf))))
    changed = ["timeouts.exchange=1200", "runtime.workers.tuning=2", "sinks.prometheus.host=0.0.0.0"]
    conf = continued(f"out={held}", "resume=true", *changed)
    now = conf.timeouts
    assert (now.exchange, now.quorum, now.late, now.decay) == (1200, 1, "decay", 0.9)
    assert (conf.runtime.name, conf.runtime.keep, conf.runtime.workers.tuning) == ("local", True, 2)
    assert (conf.sinks.prometheus.port, conf.sinks.prometheus.host) == (9999, "0.0.0.0")
    conf = continued(f"out={held}", "resume=true", "runtime.client_cpus=2", "runtime=simulation")
    assert (conf.runtime.name, conf.runtime.keep, conf.runtime.client_cpus) == ("simulation", False, 2)


def test_a_run_that_was_moved_finds_its_state(held: Path, tmp_path: Path) -> None:
    moved = held.rename(tmp_path / "second")
    assert prepared(f"out={moved}", "resume=true").clients.state_dir == str(moved / "state")


def test_a_run_keeps_its_id(tmp_path: Path) -> None:
    """Its clients find their memory by it, wherever the directory lies and whatever it is called."""
    given = [*TOY, "method=fedavg", ALIKE, f"out={tmp_path / 'first'}"]
    first, other = prepared(*given), prepared(*given)
    assert first.run_id != other.run_id and first.run_id.startswith("first-")
    Run.open(first.out, first).close()
    moved = Path(first.out).rename(tmp_path / "second")
    (moved / "rounds.jsonl").write_text('{"arm": "method", "round": 0, "seconds": 1.0, "metrics": {}}\n')
    assert prepared(f"out={moved}", "resume=true").run_id == first.run_id
    assert prepared(f"out={moved}", "resume=true", *given[:-1]).run_id == first.run_id  # all settings said again
    same_settings(recorded(moved).settings, composition.plain(other), moved)  # the id is no difference
    assert kept_settings(composition.plain(first)) == kept_settings(composition.plain(other))


def test_a_run_from_before_there_were_ids_has_none(held: Path) -> None:
    assert prepared(f"out={held}", "resume=true").run_id is None  # its memory lies under the directory's name


def test_a_run_on_own_data_that_was_moved_goes_on(tmp_path: Path) -> None:
    """Its rows have moved with it."""
    given = [*TOY, "data=folder", f"data.path={tmp_path}", "method=fedavg", ALIKE]

    def plain(out: str) -> dict[str, Any]:
        return composition.plain(composition.complete(composition.compose([*given, f"out={tmp_path / out}"])))

    same_settings(plain("first"), plain("second"), tmp_path / "second")


def test_other_settings_are_not_silently_replaced(held: Path) -> None:
    """They reach the run, which refuses them by name."""
    assert prepared(f"out={held}", "resume=true", *TOY, "method=moon", ALIKE).method.name == "moon"


def test_a_mistyped_folder_is_named(held: Path) -> None:
    with pytest.raises(SettingsError, match=r"there is no run in .*frist to go on with \(did you mean 'first'\?\)"):
        prepared(f"out={held.parent / 'frist'}", "resume=true")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("out=runs/x data=toy", "out: give an absolute directory, got runs/x"),
        ("data=toy", "out: give an absolute directory, as in out=/absolute/directory"),  # else each process has another
        ("", "out: give an absolute directory"),
        ("rounds=three", "rounds"),
        ("seed=-4", "seed"),
    ],
)
def test_a_bare_flwr_run_is_checked_in_the_same_words(overrides: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        composition.load({"overrides": overrides})


def test_a_bare_flwr_run_takes_names_as_people_type_them(tmp_path: Path) -> None:
    place = tmp_path / "My Drive (1)"
    assert composition.load({"overrides": f"'out={place}' data=toy"}).out == str(place)
