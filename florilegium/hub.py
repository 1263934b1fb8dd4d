"""Models and data of a hub: the one line that says what to do where a hub id cannot be fetched.

The hub's own libraries fetch and cache. Nothing here loads them before a hub id is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from florilegium.config.errors import first_line

# `name` or `owner/name`, as the hub spells them
ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class HubError(ValueError):
    """A file of a hub cannot be had; the one-line message names the setting, the id and what to do."""


def is_id(place: str) -> bool:
    """Whether a place is a hub id: what `assets.located` gives is otherwise an absolute directory."""
    return ID.fullmatch(place) is not None and not Path(place).is_dir()


def fetched(place: str, file: str, setting: str) -> Path:
    """One file of a hub id, from the local cache or the hub. HubError names `setting`."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(place, file))
    except Exception as error:  # no network, no such id, no such file, no right to it: each has its own class
        raise HubError(cannot(setting, place, error)) from error


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
    if constants.is_offline_mode():
        return "it is not in the local cache, and HF_HUB_OFFLINE forbids to fetch"
    if any(isinstance(each, (errors.LocalEntryNotFoundError, ConnectionError)) for each in chain):
        return f"{constants.ENDPOINT} cannot be reached"
    return f"{type(error).__name__}: {first_line(error)}"


def chained(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
