"""The families of p(x|z), one a file. `training.likelihood` chooses among them."""
