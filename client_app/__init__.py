"""The client room: everything a device runs. It imports `florilegium` and nothing of the server."""
