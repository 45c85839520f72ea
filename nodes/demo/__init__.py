"""The digits demo: its models as host objects, its prompt, data and judge."""
