"""Flower's door into the server: read the settings, then drive the rounds."""

from __future__ import annotations

import logging

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from florilegium import preflight
from florilegium.config import composition
from florilegium.data.own import preparation
from server_app import driver

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run every arm of the settings. An error's message is the reason that the launcher prints."""
    logging.getLogger("flwr").propagate = False  # a library that configures the root logger would print each line twice
    conf = composition.load(context.run_config)
    if not context.run_config.get("settings"):  # a bare `flwr run`: the launcher has not checked them
        if facts := preparation.prepare(conf, afresh=True):  # the checks look at the rows as they are dealt
            conf.data.classes = facts["classes"]
        preflight.validate(conf)
    driver.drive(conf, grid)
