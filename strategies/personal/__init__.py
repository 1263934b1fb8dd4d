"""Server sides of methods whose clients keep a part of their model for themselves.

Imported by the catalogue.
"""
