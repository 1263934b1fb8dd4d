"""What the client sides of several methods share: local training, averaging, representations.

Imported by client_app/methods alone.
"""
