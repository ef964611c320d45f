"""What a flight record shows: pure functions from it to arrays and numbers, each with its identity check."""
