"""Server sides of methods that average weights, beside those that stand alone.

Imported by the catalogue.
"""
