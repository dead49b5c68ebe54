"""Scheduled kernels -> Python source and the program that calls them."""
