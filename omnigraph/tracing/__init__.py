"""From a Program to a Graph: torch's export, names, and what was specialized."""
