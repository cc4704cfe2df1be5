"""``python -m vpexp``: the command line."""

import atexit
import gc

from vpexp.cli import main

if __name__ == "__main__":
    # Python ends by looking for garbage in all that was imported: with torch, Lightning and MLflow for seconds.
    atexit.register(gc.freeze)
    main()
