"""How a run is started: SuperLink, SuperNodes, keys, warm processes, the launcher.

Imported by the command line alone; it is not part of Flower's bundle.
"""
