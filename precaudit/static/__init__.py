"""The static witness: reads source and configs as nodes in LibCST's words, executes nothing, never imports torch."""
