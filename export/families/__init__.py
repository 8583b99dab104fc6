"""One file per model family: what it is made of and where transformers keeps the parts."""
