"""What the README's figures come from: `python launch.py bench NAME`."""
