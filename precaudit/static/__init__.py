"""The static witness: reads source and configs with LibCST, executes nothing, never imports torch."""
