"""A pytest plugin: torch.nn is pynn in the files that are tested, torch's own for example.

    python -m pytest -p parity_tests.installed path/to/pytorch/test/test_nn.py

Loaded before any file of tests is imported. Without the plugin the same command tests torch.
"""

import pynn

pynn.install()
