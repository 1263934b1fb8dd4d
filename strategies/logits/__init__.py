"""Server sides of methods that exchange class scores of public samples.

Imported by the catalogue.
"""
