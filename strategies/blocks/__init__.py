"""What the server sides of several methods share: the loop of rounds, exchanges, averaging, synthesis, replay.

Imported by strategies and server_app.
"""
