"""Measuring a service: load generator, simulator, results.

The simulator and the load generator are imported by their own names (`bench.simulator`, `bench.load`), because each pod
starts one of them and must not pay for the other.
"""
