"""The host side: from a Hugging Face checkpoint to a device bundle. torch lives here, nowhere else."""
