"""Parity: every pynn definition against the C++ op it replaces, on every executor."""
