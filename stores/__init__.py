"""The stores behind the contract of `actors.store`, and the shelves on which books of one place stand.

A book is one keyspace with one owner: a partner's, a cell's own, the control plane's. Knows no payment, no cell and
no operator.
"""
