"""Client sides of methods that exchange small modules inside the clients' models.

Imported by the catalogue.
"""
