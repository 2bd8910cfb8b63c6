"""Every PEFT method: how it attaches to a frozen base, its mathematics, and its names on disk."""
