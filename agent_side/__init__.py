"""The agent's process: the tap, adapters, reference agents."""
