"""``python -m omnigraph`` is ``omnigraph``."""

from omnigraph.cli import main

raise SystemExit(main())
