"""One process of the run: what it saw, the file it leaves, the other ranks, and how it ends."""
