"""Whether the checkpoint behind a client's model can be read and is of its kind, before a round; no weight is loaded.

`build` would say much of it too, but at a client and in the midst of a round.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from florilegium import hub
from florilegium.assets import AssetError, located
from florilegium.config.clients import ClientsSettings
from florilegium.config.errors import first_line
from florilegium.models import build
from florilegium.models.bodies import ModelError
from florilegium.models.pretrained import TRAININGS, configuration, image_place

CONFIG, OPEN_CLIP = "config.json", "open_clip_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
SPELLINGS = ("*vocab*", "*.model", "*.tiktoken")  # without one, transformers makes a tokenizer that knows no word
INDEX = ".index.json"  # beside weights that lie in several files
KEPT_WHOLE = "copy the whole checkpoint again"


def check(clients: ClientsSettings, modality: str, model: str) -> None:
    """Look at what a client of this modality (image, text, pair) and model would load: its configuration, tokenizer and
    the heads of its files of weights. ModelError is one line with the setting, the checkpoint and what to do.

    A checkpoint that lies here takes milliseconds; of a hub id, the small files are fetched.
    """
    for kind, name in build.parts_of(modality, model):
        given = build.sizes(clients, name)
        if build.is_given(given):
            _check_one(clients, kind, name, given)


def _check_one(clients: ClientsSettings, kind: str, name: str, given: dict[str, Any]) -> None:
    key = "path" if given.get("path") else "pretrained"
    where, value = f"clients.architectures.{name}.{key}", str(given[key])
    place = _place(kind if key == "pretrained" else "", value, where)
    try:
        if key == "path" or build.tower_of(given):
            _open_clip(place, where)
        else:
            _of_its_kind(place, where, kind, name, value)
            how = given.get("training", "full")
            if how not in TRAININGS:
                raise ModelError(f"clients.architectures.{name}.training: {how!r} is none of {', '.join(TRAININGS)}")
        if Path(place).is_dir():
            _whole_weights(Path(place), where)
        if kind == "text":
            _tokenizer(clients, name, Path(place, "tokenizer.json"))
    except ModelError:
        raise
    except hub.HubError as error:
        raise ModelError(str(error)) from error
    except Exception as error:  # each library has classes of its own for a file that it cannot read
        said = hub.cannot(where, place, error) if hub.is_id(place) else f"{where}: {first_line(error)}"
        raise ModelError(said) from error


def _place(kind: str, value: str, where: str) -> str:
    """The directory or hub id that the setting `where` names. ModelError."""
    try:
        return image_place(value) if kind == "image" else located(value, bare=True)
    except (AssetError, ValueError) as error:
        raise ModelError(f"{where}: {first_line(error)}") from error


def _tokenizer(clients: ClientsSettings, name: str, file: Path) -> None:
    """That the tokenizer can be read: by its own library, which starts at once, where it has left a file."""
    if not file.is_file():
        folder = file.parent
        if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in (*SPELLINGS, OPEN_CLIP)):
            raise ValueError(f"{folder} has no tokenizer.json, nor files of another tokenizer; {KEPT_WHOLE}")
        build.vocabulary(clients, name)
        return
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises bare Exception
        raise ValueError(f"{file} cannot be read: {first_line(error)}") from error


def _open_clip(place: str, where: str) -> None:
    if hub.is_id(place):
        hub.fetched(place, OPEN_CLIP, where)
    elif not Path(place, OPEN_CLIP).is_file():
        raise ModelError(f"{where}: {place} has no {OPEN_CLIP}, so it is no directory of an open_clip model")


def _of_its_kind(place: str, where: str, kind: str, name: str, value: str) -> None:
    """That this is a model of transformers, and reads what the client has."""
    file = hub.fetched(place, CONFIG, where) if hub.is_id(place) else Path(place, CONFIG)
    if not file.is_file():
        raise ModelError(f"{where}: {place} has no {CONFIG}, so it is no checkpoint of transformers")
    said = json.loads(file.read_text())
    type_ = said.get("model_type") if isinstance(said, dict) else None
    if name in build.ARCHITECTURES[kind]:
        if type_ not in (None, name):
            raise ModelError(
                f"{where}: {value} is a model of type {type_}, and `{name}` takes those of type {name}; any other "
                f"{kind} encoder goes under a name of your own, +clients.architectures.mine={{pretrained: ...}}"
            )
        return
    class_, reads = _inputs(configuration(place))
    if kind not in reads:
        what = f"reads {reads[0]}s" if reads else "reads neither images nor texts"
        article = "an" if kind == "image" else "a"
        raise ModelError(
            f"{where}: {value} is a {class_}, which {what}; {article} {kind} client needs {article} {kind} backbone"
        )


def _inputs(config: Any) -> tuple[str, tuple[str, ...]]:
    """The class that opens this configuration, and the modalities that it reads. ModelError for one without a class."""
    from transformers import MODEL_MAPPING

    try:
        found: Any = MODEL_MAPPING[type(config)]
    except KeyError as error:
        raise ValueError(f"transformers has no encoder for a {type(config).__name__}") from error
    class_ = found[0] if isinstance(found, tuple) else found
    if hasattr(class_, "get_image_features") and hasattr(class_, "get_text_features"):
        return class_.__name__, ("image", "text")
    reads = {"pixel_values": ("image",), "input_ids": ("text",)}.get(class_.main_input_name, ())
    return class_.__name__, reads


def _whole_weights(place: Path, where: str) -> None:
    """That there are files of weights, and that those in safetensors are not cut. ModelError."""
    there = [place / name for name in WEIGHTS if (place / name).is_file()]
    indices = [place / f"{name}{INDEX}" for name in WEIGHTS if (place / f"{name}{INDEX}").is_file()]
    if not there and not indices:
        raise ModelError(f"{where}: {place} has no {WEIGHTS[0]} or other file of weights; {KEPT_WHOLE}")
    if not there:
        there = [place / name for name in sorted(set(json.loads(indices[0].read_text())["weight_map"].values()))]
    for file in there:
        try:
            _opened(file)
        except Exception as error:  # safetensors has a class of its own; a pointer of git-lfs is another story again
            raise ModelError(f"{where}: {file} cannot be read ({first_line(error)}); {KEPT_WHOLE}") from error


def _opened(file: Path) -> None:
    if file.suffix != ".safetensors":
        file.open("rb").close()
        return
    from safetensors import safe_open

    with safe_open(file, framework="pt"):  # reads the head alone, and compares its lengths with the file's
        return
