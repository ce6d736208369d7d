"""What a cell shows to the outside: frames, the messages in them, and the connection that carries them.

Routers and the control plane import this package and nothing else of a cell.
"""
