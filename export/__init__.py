"""The host side: from a Hugging Face checkpoint to a device bundle. torch lives here, nowhere else."""

import sys

# transformers imports torchao where litert-torch has brought it: of no use here, and it warns on every terminal. The
# one process that needs it, the converter to TFLite, takes this back.
sys.modules.setdefault("torchao", None)  # type: ignore[arg-type]
