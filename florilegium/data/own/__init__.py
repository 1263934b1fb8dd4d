"""A site's own data: folders, tables and pairs, read and examined.

Imported by data.private and `florilegium data check` alone.
"""
