"""Models and data of a hub: whether it can be reached, and the one line that says what to do where it cannot.

The hub's own libraries fetch and cache. Without a network each of them tries again for minutes; so it is asked once in
a process, for a few seconds, before the first hub id is opened. Nothing here loads them before that.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from florilegium.config.errors import first_line

# `name` or `owner/name`, as the hub spells them
ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


PATIENCE_SECONDS = 3.0
silent: list[str] = []  # the hub that did not answer in this process


class HubError(ValueError):
    """A file of a hub cannot be had; the one-line message names the setting, the id and what to do."""


def is_id(place: str) -> bool:
    """Whether a place is a hub id: what `assets.located` gives is otherwise an absolute directory."""
    return ID.fullmatch(place) is not None and not Path(place).is_dir()


def open_or_offline(place: str) -> None:
    """Call it before a library opens `place`. Where that is a hub id and the hub does not answer, the hub's libraries
    are offline from then on: they take what is in the local cache at once, and fail at once without it."""
    if is_id(place):
        reached()


@cache
def reached() -> bool:
    """Whether the hub (HF_ENDPOINT) answers, asked once in a process; False where HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # "Retrying in 8s"
    if constants.is_offline_mode():
        return False
    answers: list[bool] = []
    asking = threading.Thread(target=lambda: answers.append(_answers(constants.ENDPOINT)), daemon=True)
    asking.start()
    asking.join(2 * PATIENCE_SECONDS)  # looking up a name has no time limit of its own
    if any(answers):
        return True
    constants.HF_HUB_OFFLINE = True  # what is_offline_mode() of all of them reads
    if "datasets" in sys.modules:  # it keeps a copy
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True
    silent.append(constants.ENDPOINT)
    return False


def _answers(endpoint: str) -> bool:
    """Any answer counts, a refusal too; the session knows the proxies of the environment."""
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=PATIENCE_SECONDS)
    except Exception:  # no route, no name, no answer in time: each has a class of its own
        return False
    return True


def fetched(place: str, file: str, setting: str) -> Path:
    """One file of a hub id, from the local cache or the hub. HubError names `setting`."""
    from huggingface_hub import hf_hub_download

    open_or_offline(place)
    try:
        return Path(hf_hub_download(place, file))
    except Exception as error:  # no network, no such id, no such file, no right to it: each has its own class
        raise HubError(cannot(setting, place, error)) from error


@cache
def optional(place: str, file: str, setting: str) -> Path | None:
    """A file that a hub id may have; None where it has none. Without a network and a copy in the local cache nobody
    knows, so it is None with a warning. HubError names `setting`."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    open_or_offline(place)
    try:
        return Path(hf_hub_download(place, file))
    except LocalEntryNotFoundError:
        logging.getLogger(__name__).warning(
            "%s: %s is taken to have no %s: the hub was not asked", setting, place, file
        )
    except EntryNotFoundError:
        pass
    except Exception as error:  # no such id, no right to it: each has its own class
        raise HubError(cannot(setting, place, error)) from error
    return None


def cannot(setting: str, place: str, error: BaseException, data: bool = False) -> str:
    """The line for a hub id that a setting names; `data`: it is a data set."""
    kind = "--repo-type dataset " if data else ""
    return (
        f"{setting}: {place} cannot be fetched: {reason(error)}; where there is a network, run "
        f"`hf download {kind}{place} --local-dir DIR`, and name DIR in {setting}"
    )


def reason(error: BaseException) -> str:
    """Why a library could not fetch, in a few words, from the first error in the chain that says it."""
    from huggingface_hub import constants, errors

    chain = list(chained(error))
    known: list[tuple[tuple[type[BaseException], ...], str]] = [
        ((errors.GatedRepoError,), "its owner must let you in (ask on its page, then `hf auth login`)"),
        ((errors.RepositoryNotFoundError,), "the hub has none of this name, or it needs a login (`hf auth login`)"),
    ]
    for kinds, words in known:
        if any(isinstance(each, kinds) for each in chain):
            return words
    for each in chain:
        if isinstance(each, errors.RemoteEntryNotFoundError):
            return first_line(each)
    if silent:
        return f"{silent[0]} cannot be reached, and it is not in the local cache"
    if constants.is_offline_mode():
        return "it is not in the local cache, and HF_HUB_OFFLINE forbids to fetch"
    if any(isinstance(each, (errors.LocalEntryNotFoundError, ConnectionError)) for each in chain):
        return f"{constants.ENDPOINT} cannot be reached"
    return f"{type(error).__name__}: {first_line(error)}"


def is_about_fetching(error: BaseException) -> bool:
    """Whether a file could not be had, in contrast to one that is there and cannot be used."""
    from huggingface_hub import errors

    kinds = (errors.HfHubHTTPError, errors.EntryNotFoundError, ConnectionError)
    return any(isinstance(each, kinds) for each in chained(error))


def chained(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
