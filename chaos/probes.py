"""What experiments look at while they run: Chaos Toolkit's probes, as plain functions. They change nothing."""

from chaos import session


def cells_answer() -> bool:
    """Say whether every cell that is not struck goes on answering payments."""
    return not session.current().silent_cells()


def bystanders_unharmed() -> bool:
    """Say whether no partner outside the target has met an error."""
    return session.current().errors_outside == 0
