"""A module per question: measure(session) yields its rows, `python -m benchmarks NAME` asks it."""
