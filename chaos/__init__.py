"""Experiments on a whole gateway: workloads, faults, and a checker that judges what was seen. May import anything."""
