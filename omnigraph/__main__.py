"""``python -m omnigraph`` is ``omnigraph``."""

from omnigraph.cli.main import main

raise SystemExit(main())
