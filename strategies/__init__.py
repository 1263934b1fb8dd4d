"""The server side of each method (several may have one class); blocks/ holds what several share.

Loaded by name through florilegium/catalogue.py.
"""
