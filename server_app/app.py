"""Flower's door into the server: read the settings, then drive the rounds."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from florilegium import settings
from server_app import driver

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run every row of the settings. An error's message is the reason that the launcher prints."""
    driver.drive(settings.load(context.run_config), grid)
