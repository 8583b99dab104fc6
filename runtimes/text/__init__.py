"""Messages to tokens and back: templates, tokenizers and the files that hold them."""
