"""Clean training programs, ways to break them, and what each witness says of the broken ones."""
