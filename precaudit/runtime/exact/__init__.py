"""`--exact`: one step of the program with a float64 companion beside every floating number, op by op."""
