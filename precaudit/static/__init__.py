"""The static witness: reads source with LibCST and configs, executes nothing, never imports torch."""
