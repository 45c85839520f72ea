"""What launch.py runs inside the environment: serve, demo, the demo's trainings, benchmarks."""
