"""Evidence, hypotheses, scoring and narration."""
