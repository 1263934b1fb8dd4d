"""Client sides of methods that exchange mean representations of classes.

Imported by the catalogue.
"""
