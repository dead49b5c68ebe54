"""Speed, measured side by side: `python -m benchmarks`, and the demo: `python -m benchmarks.demo`."""
