"""Server sides of methods that exchange representations of public samples.

Imported by the catalogue.
"""
