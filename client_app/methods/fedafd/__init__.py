"""The client side of FedAFD: `client` reads like the algorithm, the others are its parts.

Loaded through florilegium/catalogue.py.
"""
