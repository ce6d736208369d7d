"""The control plane: partners, the directory, the supervisor of processes, and the `bulkhead` command.

Never on the payment path: with all of it gone, routers and cells go on. Nothing here imports Ray or an actor.
"""
