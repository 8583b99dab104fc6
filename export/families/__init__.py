"""Model families, one file each: specs of their modules; `registry` has them all."""
