"""The server side of each method, one file a method; blocks/ holds what several share.

Loaded by name through florilegium/catalogue.py.
"""
