"""The client side of each method: one file, or one folder where one file is not enough.

Loaded by name through florilegium/catalogue.py.
"""
