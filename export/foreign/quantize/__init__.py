"""A user's graph in INT8 or INT4: the forms of its nodes, and the choice among them."""
