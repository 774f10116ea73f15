"""State made of events: who a tensor is, what its value descends from, where in a step the program is."""
