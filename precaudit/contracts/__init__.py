"""What a team holds its runs to: a run's precision written down, held against later runs, compared between two."""
