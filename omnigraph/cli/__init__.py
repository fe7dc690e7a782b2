"""The command line. It imports numpy and the standard library only, until a command needs more."""
