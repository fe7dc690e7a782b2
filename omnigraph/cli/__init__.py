"""The command line. It imports only numpy and the standard library until a command needs more."""
