"""One probe per place to look; each installs itself and returns its undo."""
