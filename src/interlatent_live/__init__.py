"""See what an agent is thinking while it acts."""
