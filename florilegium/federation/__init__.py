"""The server's view of its clients: exchanges, ledger, late replies, defences.

Imported by strategies and server_app; never by client_app.
"""
