"""Changes after which a clean program must still be told clean: one file for each family, in each `OPERATORS`."""
