"""How every HTTP listener of the gateway listens: one server, one protocol, one set of bounds. Imports nothing of ours.

What a listener answers stands with its owner; here stands what any stranger may do to a socket.
"""
