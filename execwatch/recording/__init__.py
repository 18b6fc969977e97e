"""What was executed: record it, keep it, ask it, play it again."""
