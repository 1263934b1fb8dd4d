"""Florilegium: federated knowledge transfer with text-to-image models, as a Flower app.

The rooms and who may import whom: CONTRIBUTING.md.
"""
