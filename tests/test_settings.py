"""Settings: every shipped file composes and types; every typo gives one line that names the key."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from florilegium import assets, preflight
from florilegium.catalogue import CATALOGUE
from florilegium.config import composition, overrides
from florilegium.config.composition import SettingsError
from florilegium.config.data import DataSettings
from florilegium.config.settings import Settings, settings_of

METHODS = sorted(path.stem for path in (composition.CONF / "method").glob("*.yaml"))
PRESETS = composition.CONF / "experiment"
# of the embedded data; tests/full/test_experiments.py has those of full size
EXPERIMENTS = sorted(
    path.relative_to(PRESETS).with_suffix("").as_posix()
    for folder in ("", "table1", "table3", "table8")
    for path in (PRESETS / folder).glob("*.yaml")
)


def checked(*overrides: str) -> Settings:
    conf = composition.complete(composition.compose(overrides))
    preflight.validate(conf)
    return conf


def message(*overrides: str) -> str:
    """The complaint about these overrides; it must be one line."""
    with pytest.raises((SettingsError, assets.AssetError)) as caught:
        checked(*overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_method_of_the_catalogue_has_settings_and_the_other_way_round() -> None:
    assert set(CATALOGUE) == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_composes_and_types(method: str) -> None:
    one = ["clients.mix=[{modality: image, model: resnet},{modality: image, model: resnet}]"]
    checked(f"method={method}", *(one if CATALOGUE[method].one_architecture else []), "references=none")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_each_experiment_composes_and_types(experiment: str) -> None:
    conf = checked(f"experiment={experiment}")
    assert conf.label
    if experiment.startswith(("table1", "table3")):
        has_the_budget_of_its_table(conf)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("roundz=3", "no setting 'roundz' (did you mean 'rounds'?)"),
        ("datas=emoji", "no setting 'datas' (did you mean 'data'?)"),
        (
            "method=fedmkt",
            "no method 'fedmkt' (did you mean 'fedmmkt'?); there are ",
        ),
        ("method.server.vote_treshold=0.4", "did you mean 'method.server.vote_threshold'?"),
        (
            "+method.server.vote_treshold=0.4",
            "method.server.vote_treshold: Key 'vote_treshold' not in 'FedMMKTSettings'"
            " (did you mean 'vote_threshold'?)",
        ),
        ("+method.server.t2i.mrge=add", "method.server.t2i.mrge"),
        ("method.server.vote_threshold=1.4", "method.server: vote_threshold must lie between 0 and 1, got 1.4"),
        ("method.server.samples=many", "method.server.samples: Value 'many'"),
        ("rounds=abc", "rounds: Value 'abc'"),
        ("rounds=-1", "rounds must lie between 0"),
        ("cohort.fraction=2", "cohort: fraction must lie between 0 and 1, got 2"),
        ("timeouts.quorum=9", "timeouts.quorum is 9, but there are"),
        ("resume=true", "resume=true needs out=DIR"),
        ("runtime=deployment", "runtime: superlink must name a connection"),
        ("method=fedavg & clients=mixed", "fedavg averages weights and needs one architecture"),
        ("rounds=[1", "cannot read an override"),
        ("clients.mix=[]", "clients.mix is empty"),
        ("clients.mix=[{modality: smell, model: nose}]", "clients.mix[0]: a client has a modality (image, text, pair)"),
        ("clients.mix=[{modality: image, model: bert}] & timeouts.quorum=1", "clients.mix[0]: no image model 'bert'"),
        ("clients.partition.alpha=-1", "clients.partition: alpha must lie between"),
        ("diffusion.model=mini-sdd", "no asset models/mini-sdd"),
        ("diffusion.steps=0", "diffusion: steps must lie between"),
        ("data.name=emojy", "no asset data/emojy"),
    ],
)
def test_a_bad_setting_gets_one_line_that_names_it(override: str, said: str) -> None:
    assert said in message(*override.split(" & "))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+clients.widht=3", "clients.widht: Key 'widht' not in 'ClientsSettings' (did you mean 'width'?)"),
        ("+rouns=3", "rouns: Key 'rouns' not in 'Settings' (did you mean 'rounds'?)"),
        ("clients.mix=[{modality: image, modle: vit}]", "Key 'modle' not in 'Member' (did you mean 'model'?)"),
        ("+method.server.vote_treshold=1", "method.server.vote_treshold: Key 'vote_treshold' not in"),
        ("+method.client.learnig_rate=1", "(did you mean 'learning_rate'?)"),
        (
            "+method.server.t2i.bach=2",
            "method.server.t2i.bach: Key 'bach' not in 'TuneSettings' (did you mean 'batch'?)",
        ),
        ("+method.servre.samples=2", "method.servre: fedmmkt has no such setting (did you mean 'server'?)"),
        ("+references.standalone.client.bach=1", "references.standalone.client.bach: Key 'bach'"),
        ("+references.standalone.clint=3", "references.standalone.clint: standalone has no such setting (did you mean"),
        ("+references.mine.client.lr=1", "mine.name is missing"),
        ("+references.mine={name: fedavgg}", "mine: no method 'fedavgg'"),
        ("references=null", "references=null: references needs a choice; there are all, "),
    ],
)
def test_an_unknown_key_is_named_when_the_settings_are_composed(override: str, said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        composition.compose([override])


def test_a_yaml_of_ones_own_with_an_unknown_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "conf"
    shutil.copytree(composition.CONF, folder)
    (folder / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nclients: {width: 64}\nmethod: {server: {vote_treshold: 0.4}}\n"
    )
    monkeypatch.setattr(composition, "CONF", folder)
    with pytest.raises(SettingsError, match="vote_treshold.*did you mean '(method.server.)?vote_threshold'"):
        composition.compose(["experiment=mine"])


def has_the_budget_of_its_table(conf: Settings) -> None:
    """240 samples a round, four passes of batches of 32 with 32 private rows beside each: 30 steps of 32 rows."""
    client, server = conf.method.client, conf.method.server
    assert (conf.rounds, client.pretrain_epochs, client.local_epochs, client.batch) == (4, 12, 1, 32)
    if conf.method.name == "standalone":
        assert (client.extra_epochs, client.extra_batches) == (0, 30)
        return
    if hasattr(client, "extra_batches"):  # no shared samples: the private batches that others mix beside them
        assert client.extra_batches == 30
        return
    passes = [getattr(client, f"{name}_epochs", 0) for name in ("distill", "transfer", "contrast", "align")]
    batches = [getattr(client, f"{name}_batch", 32) for name in ("distill", "public")]
    assert sum(passes) == 4 and set(batches) == {32} and client.mix_private
    assert getattr(client, "replay", 0) == 0 and getattr(client, "revisit_epochs", 0) == 0
    assert (server if conf.method.name == "fedmmkt" else server.public).samples == 240


def test_no_experiment_is_a_plain_run() -> None:
    assert composition.compose(["experiment=null", "rounds=2"]) == composition.compose(["rounds=2"])


def test_settings_win_over_overrides_and_arrive_as_they_were() -> None:
    conf = composition.complete(composition.compose(["rounds=7", "seed=3"]))
    run_config = {"settings": json.dumps(composition.plain(conf)), "overrides": "rounds=2"}
    assert composition.load(run_config) == conf
    given = {"settings": "", "overrides": "out=/absolute/directory rounds=2 'label=two words'"}
    assert composition.load(given).label == "two words"


def test_the_method_is_the_first_arm_and_references_follow() -> None:
    conf = composition.compose(["references=standalone"])
    assert list(composition.arms(conf)) == [composition.MAIN, "standalone"]
    assert list(composition.arms(composition.compose(["references=none"]))) == [composition.MAIN]


def test_complete_settings_depend_on_no_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    conf = composition.complete(composition.compose(["out=mine"]))
    assert conf.out == str(tmp_path / "mine") and conf.clients.state_dir == str(tmp_path / "mine" / "state")
    assert Path(conf.assets).is_dir()
    assert Path(composition.complete(composition.compose()).out).parent == tmp_path / "runs"


def test_paths_of_data_and_models_depend_on_no_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("own/model", "own/judge", "own/words", "mini-clip", "home"):
        Path(name).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    given = ["diffusion.model=own/model", "data.judge=./own/judge", "clients.tokenizer=own/words"]
    given += ["diffusion.captioner=someone/at-a-hub", "data.public.path=~/pairs", "data.path=nowhere"]
    given += ["+clients.architectures.mine={pretrained: own/model, training: frozen}"]
    conf = composition.complete(composition.compose(overrides.readable([*given, "clients=mixed", "diffusion=mini"])))
    assert conf.diffusion.model == str(tmp_path / "own/model") == conf.clients.architectures["mine"]["pretrained"]
    assert (conf.data.judge, conf.clients.tokenizer) == (str(tmp_path / "own/judge"), str(tmp_path / "own/words"))
    assert (conf.diffusion.captioner, conf.diffusion.clip) == ("someone/at-a-hub", "mini-clip")  # an asset comes first
    assert (conf.data.public.path, conf.data.path) == (str(tmp_path / "home/pairs"), "nowhere")
    own = composition.complete(composition.compose(["data=folder", "data.path=mine", "data.judge=own/judge"]))
    assert (own.data.path, own.data.judge) == (str(tmp_path / "mine"), str(tmp_path / "own/judge"))


def test_a_directory_in_the_place_of_a_hub_s_data_set_depends_on_no_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes of a run start elsewhere. An id of a hub stays as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("saved/set").mkdir(parents=True)

    def placed(*given: str) -> DataSettings:
        return composition.complete(composition.compose(overrides.readable(["data=toy", *given]))).data

    there = str(tmp_path / "saved/set")
    assert placed("data.hub=saved/set").hub == placed("data.hub=~/saved/set").hub == there
    assert placed("data.hub=someone/at-a-hub").hub == "someone/at-a-hub"
    domains = "+data.hub_domains={a: saved/set, b: 'saved/set:sketch', c: 'someone/set:photo'}"
    assert placed(domains).hub_domains == {"a": there, "b": f"{there}:sketch", "c": "someone/set:photo"}


def test_a_taken_directory_name_is_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(composition.time, "strftime", lambda _: "now")
    conf = settings_of({"method": {"name": "m"}, "data": {"name": "d"}, "seed": 1})
    names = []
    for _ in range(3):
        names.append(composition.default_directory(conf))
        Path(names[-1]).mkdir(parents=True)
    assert names == ["runs/now-m-d-s1", "runs/now-m-d-s1-2", "runs/now-m-d-s1-3"]


def test_a_missing_or_torn_asset_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data" / "lexicon"
    data.mkdir(parents=True)
    monkeypatch.setenv(assets.VARIABLE, str(tmp_path))
    assert f"{data / 'classes.json'} is missing" in message()
    (data / "classes.json").write_text("[]")
    (data / "train.parquet").write_bytes(b"PAR1 torn")
    assert f"{data / 'train.parquet'} is not a whole Parquet file" in message()
    monkeypatch.setenv(assets.VARIABLE, str(tmp_path / "gone"))
    assert assets.VARIABLE in message()
