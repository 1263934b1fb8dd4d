"""Flower's door into the client: message -> phase of the arm's client side -> reply.

A client process keeps only caches between messages. What must last is in the client's memory on disk. Every error
becomes one line for the server: a handler never returns None.
"""

from __future__ import annotations

import florilegium  # noqa: F401  (before torch is loaded: it says how threads wait)

# isort: split
import logging
from functools import lru_cache, partial
from typing import Any

import torch
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from client_app import evaluation
from client_app.client import Client
from client_app.joined import in_one
from client_app.opening import open_client
from client_app.privacy.attacks import attacked, poisoned
from client_app.privacy.protection import digest_of_question
from florilegium import catalogue, seeds
from florilegium.config import composition
from florilegium.config.settings import Settings
from florilegium.diffusion.generator import enough_memory
from florilegium.models import checkpoints
from florilegium.privacy import coverage
from florilegium.protocol import codec, personal, phases
from florilegium.protocol.codec import Header
from florilegium.protocol.forms import Form
from florilegium.protocol.payloads import Weights

RAISE = "raise-errors"  # set by runtime=inprocess with FLORILEGIUM_DEBUG: an exception reaches the debugger
LESS = "the batch of the method's client, or set clients.precision=bfloat16"  # what a client's memory needs
RAISED = 2  # flwr's ErrorCode.CLIENT_APP_RAISED_EXCEPTION
app = ClientApp()


@lru_cache(maxsize=8)
def read_settings(text: str, overrides: str) -> Settings:
    """The run's settings, parsed once in a process."""
    return composition.load({"settings": text, "overrides": overrides})


def client_side(conf: Settings, arm: str) -> Any:
    """The client side of an arm, with its settings. ValueError when the arm does not exist or has no client side."""
    arms = composition.arms(conf)
    if arm not in arms:
        raise ValueError(f"no arm {arm!r} in these settings; there are {', '.join(arms)}")
    Half = catalogue.side(arms[arm].name, "client")
    if Half is None:
        raise ValueError(f"{arms[arm].name} asks nothing of clients")
    return Half(arms[arm].client)


def perform(phase: str, conf: Settings, client: Client, header: Header, content: Any) -> Any:
    """The payload that answers `phase`."""
    if phase == "profile":
        if conf.runtime.name == "deployment":  # elsewhere the launcher has looked already
            checkpoints.check(conf.clients, client.modality, client.architecture)
        return client.protection.upload(client.profile())
    method = client_side(conf, header.arm)
    name = composition.arms(conf)[header.arm].name
    client.protection.may_train(name, catalogue.entry(name).dpsgd)
    if coverage.at_client(conf.privacy):
        client.protection.asked = digest_of_question(conf, method.settings, codec.digest(content))
    if phase not in phases.phases_of(method, phases.exchanges_of(composition.arms(conf)[header.arm])):
        raise ValueError(f"{type(method).__name__} has no phase {phase!r}")
    may_come, may_leave = phases.declared(method, phase, method.settings)
    if not may_come:
        raise ValueError(f"{phase!r} is no phase of {type(method).__name__} with these settings")
    down = codec.unpack(content, *may_come, bounds={"C": client.classes}, form=Form.of(conf))
    up = answered(phase, method, client, down)
    if type(up) not in may_leave:  # `florilegium privacy` lists these and no other
        raise ValueError(f"{type(method).__name__}.{phase} gave {type(up).__name__}, which it does not declare")
    if hasattr(method, "personal"):
        personal.check_stays(up, personal.personal_names(method, client.model))
    up = client.protection.upload(up)
    if phase == "evaluate":
        return up
    if phase in ("train", "distill", "joined"):
        client.save()
    return attacked(client, up)


def answered(phase: str, method: Any, client: Client, down: Any) -> Any:
    """The method's answer to the server's message, before the privacy mechanisms change it."""
    if phase == "evaluate":
        if came := isinstance(down, Weights) and bool(down.tensors):
            stays = personal.personal_names(method, client.model)
            client.load(personal.completed(down.tensors, client.model, stays))
        if hasattr(method, "evaluate"):
            return method.evaluate(client)
        return evaluation.evaluate(client, by_class=came and not stays)
    client.memory.begin()
    # library code (dropout) draws from the global generators
    with seeds.scoped(client.seed(phase)):
        return in_one(method, client, down) if phase == "joined" else getattr(method, phase)(client, down)


def answer(phase: str, message: Message, context: Context) -> Message:
    try:
        run_config = context.run_config
        conf = read_settings(str(run_config.get("settings", "")), str(run_config.get("overrides", "")))
        torch.set_num_threads(conf.clients.threads)
        header = codec.header(message.content)
        with enough_memory(LESS):
            client = poisoned(open_client(conf, context.node_config, header), "data-path" in context.node_config)
            up = perform(phase, conf, client, header, message.content)
        return Message(
            codec.pack(up, header, client.protection.figures(), client.budget, Form.of(conf)), reply_to=message
        )
    except Exception as error:
        if RAISE in context.node_config:
            raise
        logging.getLogger("flwr").debug("%s failed", phase, exc_info=True)
        line = (str(error).strip().splitlines() or [""])[0]
        if (outside := getattr(error, "outside", None)) is not None:  # what a site may read but the server may not
            logging.getLogger("flwr").error("%s: %s", phase, line)
            line = outside
        return Message(Error(RAISED, f"{type(error).__name__}: {line}"), reply_to=message)


for _phase, _message_type in phases.PHASES.items():
    _category, _, _action = _message_type.partition(".")
    _register = getattr(app, _category)
    (_register(_action) if _action else _register())(partial(answer, _phase))
