"""Differential privacy: mechanisms, accountants, and the listing of what leaves a site.

Imported by both sides and by the command `florilegium privacy`.
"""
