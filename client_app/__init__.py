"""The client side: everything that touches private data.

It imports florilegium, never strategies or server_app, so a privacy review reads one room.
"""
