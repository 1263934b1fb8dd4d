"""What FedMMKT's two sides share.

Imported by strategies/fedmmkt.py and client_app/methods/fedmmkt.py.
"""
