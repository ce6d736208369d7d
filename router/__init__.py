"""The front door: HTTP for partners, keys, the directory, and the hash of a partner to its cell.

Imports of ours: `cells.api` and nothing else. No Ray, no actor, no store goes in.
"""
