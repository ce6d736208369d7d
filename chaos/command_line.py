"""What the programs of experiments and measurements have in common on their command lines."""

import argparse
from pathlib import Path
from typing import NoReturn

from actors.errors import StoreClientError
from chaos.store_choice import StoreChoice
from stores.fdb_cluster import read_cluster_file
from stores.shelf import KINDS


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong; how it is used stands in --help."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def add_store_options(parser: argparse.ArgumentParser) -> None:
    """Let --store and --cluster-file be given."""
    parser.add_argument("--store", choices=KINDS, default="sqlite", help="where the books stand (default: sqlite)")
    parser.add_argument("--cluster-file", type=Path, help="FoundationDB's cluster file, where the store is fdb")


def store_chosen(
    parser: argparse.ArgumentParser, given: argparse.Namespace, *, needs_cluster: bool = True
) -> StoreChoice:
    """Give the store that was chosen, or end in one line that says what is wrong with it."""
    return check_store(parser, given.store, given.cluster_file, needs_cluster=needs_cluster)


def check_store(
    parser: argparse.ArgumentParser, kind: str, cluster_file: Path | None, *, needs_cluster: bool = True
) -> StoreChoice:
    """Give the choice of a store, or end in one line that says what is wrong with it."""
    if kind == "sqlite":
        if cluster_file is not None:
            parser.error("--cluster-file is for --store fdb")
        return StoreChoice()
    if cluster_file is None:
        if needs_cluster:
            parser.error("--store fdb needs --cluster-file FILE, the cluster file of a running FoundationDB")
        return StoreChoice(kind)
    cluster_file = cluster_file.expanduser().absolute()
    try:
        read_cluster_file(cluster_file)
    except StoreClientError as error:
        parser.error(str(error))
    return StoreChoice(kind, cluster_file)
