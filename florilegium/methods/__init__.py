"""What the two sides of one method share, a folder for each method that has such a thing.

Imported by that method's files in strategies and client_app alone.
"""
