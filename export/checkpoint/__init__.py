"""Hugging Face checkpoints: `reader` opens one, `header` checks a safetensors file, `files` reads with distrust."""
